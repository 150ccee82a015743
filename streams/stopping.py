"""Why a partition is not read any further. The words are for the person who is paged."""

from __future__ import annotations

from enum import StrEnum


class StopReason(StrEnum):
    """Stable codes: beats, metrics and the runbook carry them."""

    GAP = "gap"
    """Records that were never read are gone from the topic."""
    REWOUND = "rewound"
    """The topic ends before what was already read: it was created anew, or the broker lost its end."""
    LOST = "lost"
    """The online store lost what was folded, and the topic no longer has all of its events: only the lake has."""
    REJECTS = "rejects"
    """Most of the last records broke the contract: a bad deploy, not bad data."""
    FOREIGN = "foreign"
    """A shuffle topic holds a record that intake did not write."""
    LAYOUT = "layout"
    """The topics do not have the partitions that the data was laid out for."""
    FAILING = "failing"
    """The same batch failed again and again, for a reason that no retry cured."""


RUNBOOK: dict[StopReason, str] = {
    StopReason.GAP: "records were deleted before they were read: fold afresh under a new FS_PROJECT and FS_LAKE",
    StopReason.REWOUND: "was the topic created anew? Restore it, or fold afresh under a new FS_PROJECT and FS_LAKE",
    StopReason.LOST: "run `featurestore rebuild`: the values are computed from the lake, and this partition goes on",
    StopReason.REJECTS: "read why in <topic>.dlq (header fs.error), repair producer or contract, restart the worker",
    StopReason.FOREIGN: "find out who else writes to the shuffle topic; only intake may",
    StopReason.LAYOUT: "source and shuffle topics must keep their partition counts: restore them, or use a new topic",
    StopReason.FAILING: "read the error in the worker's log, repair its cause, then restart the worker",
}


class PartitionStopped(Exception):
    """Raised inside a lane: the partition stays where it is, unread, until a person has acted."""

    def __init__(self, reason: StopReason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}; {RUNBOOK[self.reason]}"
