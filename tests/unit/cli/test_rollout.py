"""plan, apply and alias: exit codes, documents, and every bad definitions file."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.cli.conftest import Fs, edit


def test_plan_is_3_before_apply_and_0_after(fs: Fs, project: Path) -> None:
    assert [3, 0, 0] == [fs("plan").code, fs("apply").code, fs("plan").code]


def test_the_plan_is_a_document(fs: Fs, project: Path) -> None:
    document = fs("plan", "--output", "json").document

    assert document["revision"] == 0
    assert document["breaking"] is False
    assert {"contract", "source", "view", "service", "alias"} == {change["kind"] for change in document["changes"]}
    assert {"kind", "name", "detail", "breaking", "hint"} == set(document["changes"][0])


def test_output_is_understood_before_the_verb_too(fs: Fs, project: Path) -> None:
    assert fs("plan", "--output", "json").document == fs("--output", "json", "plan").document


def test_apply_says_what_it_made(fs: Fs, project: Path) -> None:
    document = fs("apply", "--output", "json").document

    assert document["revision"] == 1
    assert document["aliases"] == {"customer_profile": {"prod": 1}}
    assert fs("apply", "--output", "json").document["changes"] == []


def test_a_changed_meaning_under_the_same_version_is_4_and_changes_nothing(fs: Fs, project: Path) -> None:
    fs("apply")
    edit(project / "definitions.py", 'orders_1h = agg.count(window="1h")', 'orders_1h = agg.count(window="2h")')
    planned, applied = fs("plan"), fs("apply")

    assert [4, 4] == [planned.code, applied.code]
    assert "customer_orders@1: orders_1h: window 1h -> 2h" in planned.err
    assert "version=2" in planned.err
    assert "refused" in planned.out
    edit(project / "definitions.py", 'orders_1h = agg.count(window="2h")', 'orders_1h = agg.count(window="1h")')
    assert fs("plan").code == 0


def test_a_new_version_leaves_prod_until_it_is_promoted(fs: Fs, project: Path) -> None:
    fs("apply")
    edit(project / "definitions.py", "version=1", "version=2")
    edit(project / "definitions.py", 'orders_1h = agg.count(window="1h")', 'orders_1h = agg.count(window="2h")')
    applied = fs("apply", "--output", "json")
    promoted = fs("apply", "--promote", "--output", "json")

    assert applied.document["aliases"]["customer_profile"] == {"prod": 1}
    assert "featurestore alias customer_profile prod 2" in applied.err
    assert promoted.document["aliases"]["customer_profile"] == {"prod": 2}


def test_an_alias_is_moved_and_moved_back(fs: Fs, project: Path) -> None:
    fs("apply")
    ran = fs("alias", "customer_profile", "canary", "1", "--output", "json")

    assert ran.code == 0
    assert ran.document == {"service": "customer_profile", "alias": "canary", "version": 1, "revision": 2}


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("customer_profil", "prod", "1"), 1, "did you mean 'customer_profile'?"),
        (("customer_profile", "prod", "9"), 1, "customer_profile@9"),
        (("customer_profile", "Prod!", "1"), 2, "is no alias"),
        (("customer_profile", "prod", "one"), 2, "version"),
    ],
)
def test_an_alias_that_cannot_be(fs: Fs, project: Path, arguments: tuple[str, ...], code: int, said: str) -> None:
    fs("apply")
    ran = fs("alias", *arguments)

    assert ran.code == code
    assert said in ran.err


def test_no_definitions_at_all(fs: Fs) -> None:
    ran = fs("plan")

    assert ran.code == 2
    assert "FS_DEFINITIONS" in ran.err


def test_a_file_that_is_not_there(fs: Fs, project: Path) -> None:
    ran = fs("plan", "definitons.py")

    assert ran.code == 1
    assert "did you mean 'definitions.py'?" in ran.err


BAD_DEFINITIONS = [
    ("from featurestore import", "import nothing_of_that_name\nfrom featurestore import", "nothing_of_that_name"),
    ("from featurestore import", "from featurestore imprt", "SyntaxError"),
    ('col("amount")', 'col("amout")', "did you mean 'amount'?"),
    ('agg.sum(col("amount"), ', 'agg.summ(col("amount"), ', "did you mean 'sum'?"),
    ('orders_1h = agg.count(window="1h")', 'orders_1h = agg.count(window="5 minuts")', "5 minuts"),
    ('orders_1h = agg.count(window="1h")', 'orders_1h = agg.count(window="0s")', "0s"),
    ('where=col("refunded")', 'where=col("refunded") + "x"', "refunded_7d"),
    ("orders_7d = ", "orders_1h = ", "orders_1h"),
    ("shop.orders/v1", "shop.order/v1", "shop.order/v1"),
]


@pytest.mark.parametrize(("old", "new", "said"), BAD_DEFINITIONS)
@pytest.mark.parametrize("verb", ["plan", "apply"])
def test_bad_definitions_are_2_and_say_what_is_wrong(
    fs: Fs, project: Path, verb: str, old: str, new: str, said: str
) -> None:
    edit(project / "definitions.py", old, new)
    ran = fs(verb)

    assert ran.code == 2
    assert said in ran.err
    assert "Traceback" not in ran.err
    assert ran.out == ""
    assert not (project / "lake").exists()


def test_all_faults_of_a_file_come_at_once(fs: Fs, project: Path) -> None:
    edit(project / "definitions.py", 'col("amount")', 'col("amout")')
    edit(project / "definitions.py", 'orders_1h = agg.count(window="1h")', 'orders_1h = agg.count(window="5 minuts")')
    ran = fs("plan")

    assert "2 faults" in ran.err
    assert "amout" in ran.err
    assert "5 minuts" in ran.err


@pytest.mark.parametrize("text", ["{", "[]", '{"type": "record", "name": "X"}', '"string"', '{"type": "recrd"}'])
def test_a_contract_that_is_not_avro_is_2(fs: Fs, project: Path, text: str) -> None:
    (project / "schemas" / "shop.orders" / "v1.avsc").write_text(text)
    ran = fs("plan")

    assert ran.code == 2
    assert "shop.orders/v1" in ran.err


def test_a_lake_that_cannot_be_written_is_said(fs: Fs, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "file").write_text("")
    monkeypatch.setenv("FS_LAKE", str(project / "file" / "lake"))
    ran = fs("apply")

    assert ran.code in {1, 2}
    assert "lake" in ran.err
    assert "unexpected" not in ran.err
