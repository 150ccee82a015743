"""What runs inside Redis, and how it gets there.

A script is atomic, and is refused as a whole before its first write when memory is short, so that no key is ever
half-written. Only commands of Redis 6.2 are used.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from redis.exceptions import NoScriptError, RedisError

from featurestore.online.wire import Wire


@dataclass(frozen=True, slots=True)
class Script:
    body: str
    sha: str = field(init=False)

    def __post_init__(self) -> None:
        # SHA-1 is how Redis names scripts; nothing rests on its strength.
        object.__setattr__(self, "sha", hashlib.sha1(self.body.encode(), usedforsecurity=False).hexdigest())


@dataclass(frozen=True, slots=True)
class Call:
    """One evaluation of a script."""

    keys: Sequence[bytes]
    arguments: Sequence[bytes]


# Stores ARGV[i + 1] at KEYS[i] where its header's (generation, offset) is greater than the stored one's, with
# ARGV[1] as time to live in milliseconds unless that is empty. Answers {older, misrouted indices, unreadable indices,
# index of the last that was stored, or 0}.
#
# Bytes 16 to 39 of a value are three little-endian int64: generation, offset, partition. They are compared as 32-bit
# halves, the upper ones signed: a Lua number is a double, exact only below 2^53, and comparing strings follows the
# server's locale.
# GETRANGE instead of GET, because a copy of every stored value into Lua costs more than the comparison. It starts at
# the first byte, so that a short value is not taken for an absent one.
#
# A value of partition -1 belongs to nobody yet: that of any partition may follow it, and it follows none.
SET_IF_NEWER = Script("""
local call, halves = redis.call, struct.unpack
local ttl = ARGV[1]
local older, misrouted, unreadable, last = 0, {}, {}, 0
for i = 1, #KEYS do
  local key, value = KEYS[i], ARGV[i + 1]
  local stored = call('GETRANGE', key, 0, 39)
  local newer = stored == ''
  if not newer and #stored < 40 then
    unreadable[#unreadable + 1] = i
  elseif not newer then
    local gen_lo, gen_hi, off_lo, off_hi, part_lo, part_hi = halves('<I4i4I4i4I4i4', stored, 17)
    local new_gen_lo, new_gen_hi, new_off_lo, new_off_hi, new_part_lo, new_part_hi = halves('<I4i4I4i4I4i4', value, 17)
    if new_gen_lo == gen_lo and new_gen_hi == gen_hi then
      if part_hi >= 0 and new_part_hi < 0 then
        older = older + 1
      elseif part_hi >= 0 and (new_part_lo ~= part_lo or new_part_hi ~= part_hi) then
        misrouted[#misrouted + 1] = i
      elseif new_off_hi > off_hi or (new_off_hi == off_hi and new_off_lo > off_lo) then
        newer = true
      else
        older = older + 1
      end
    elseif new_gen_hi > gen_hi or (new_gen_hi == gen_hi and new_gen_lo > gen_lo) then
      newer = true
    else
      older = older + 1
    end
  end
  if newer then
    last = i
    if ttl == '' then call('SET', key, value) else call('SET', key, value, 'PX', ttl) end
  end
end
return {older, misrouted, unreadable, last}
""")

# Sets field ARGV[1] of the hash KEYS[1] to ARGV[3] (empty: removes it) if it holds ARGV[2] (empty: if it is absent),
# and answers nothing; otherwise answers what it holds (empty: absent). The caller decides by what it knows to stand
# there, so that integers are compared where they are exact.
#
# KEYS[2], … are values that must have ARGV[4], … as bytes 16 to 39: where one has not, nothing is written, and the
# answer is its number.
SWAP_FIELD = Script("""
local stored = redis.call('HGET', KEYS[1], ARGV[1]) or ''
if stored ~= ARGV[2] then return stored end
for i = 2, #KEYS do
  if redis.call('GETRANGE', KEYS[i], 16, 39) ~= ARGV[i + 2] then return i end
end
if ARGV[3] == '' then redis.call('HDEL', KEYS[1], ARGV[1]) else redis.call('HSET', KEYS[1], ARGV[1], ARGV[3]) end
return false
""")


# Puts the value at each second key in the place of the one before it in KEYS, unless that is as new or newer, with
# ARGV[1] as its time to live in milliseconds (empty: none). A value that is not there any more was put already.
PROMOTE = Script("""
local call, halves = redis.call, struct.unpack
local moved = 0
for i = 1, #KEYS, 2 do
  local live, staged = KEYS[i], KEYS[i + 1]
  local value, stored = call('GETRANGE', staged, 0, 39), call('GETRANGE', live, 0, 39)
  if #value == 40 then
    local newer = #stored < 40
    if not newer then
      local gen_lo, gen_hi, off_lo, off_hi = halves('<I4i4I4i4', stored, 17)
      local new_gen_lo, new_gen_hi, new_off_lo, new_off_hi = halves('<I4i4I4i4', value, 17)
      if new_gen_lo == gen_lo and new_gen_hi == gen_hi then
        newer = new_off_hi > off_hi or (new_off_hi == off_hi and new_off_lo > off_lo)
      else
        newer = new_gen_hi > gen_hi or (new_gen_hi == gen_hi and new_gen_lo > gen_lo)
      end
    end
    if newer then
      call('RENAME', staged, live)
      if ARGV[1] == '' then call('PERSIST', live) else call('PEXPIRE', live, ARGV[1]) end
      moved = moved + 1
    else
      call('DEL', staged)
    end
  end
end
return moved
""")


async def evaluate(wire: Wire, script: Script, calls: Sequence[Call]) -> list[Any]:
    """The replies to many calls, sent as one pipeline, in order.

    Calls run in order unless the server has forgotten the script: it is then loaded, and the calls that were refused
    run after those that were not. Raises the first other error once every call has been answered.
    """
    replies = await wire.exchange([_words(script, call) for call in calls])
    unknown = [i for i, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
    if unknown:
        await wire.ask("SCRIPT", "LOAD", script.body)
        again = await wire.exchange([_words(script, calls[i]) for i in unknown])
        for i, reply in zip(unknown, again, strict=True):
            replies[i] = reply
    for reply in replies:
        if isinstance(reply, RedisError):
            raise reply
    return replies


def _words(script: Script, call: Call) -> tuple[str | bytes | int, ...]:
    return ("EVALSHA", script.sha, len(call.keys), *call.keys, *call.arguments)
