"""The index in Redis: a hint, soft state, off every critical path. A node uses NodeIndex, a router IndexReader and EngineRecorder."""

from kvcommons_core.index.connection import IndexConnection
from kvcommons_core.index.feedback import FeedbackListener
from kvcommons_core.index.gallop import Hit, fold, gallop
from kvcommons_core.index.membership import Membership, MembershipKeeper, MemberState
from kvcommons_core.index.publisher import Inventory, NodeIndex, Published
from kvcommons_core.index.reader import IndexReader, Lookup, LookupStatus
from kvcommons_core.index.recorder import EngineRecorder
from kvcommons_core.index.schema import (
    Holder,
    Member,
    MemberInfo,
    MemberKind,
    Names,
    Tenure,
    Tier,
    text_key8,
    token_key8,
    unpack_holders,
)
from kvcommons_core.index.stream import OpStream
from kvcommons_core.index.view import MembersView

__all__ = [
    "EngineRecorder",
    "FeedbackListener",
    "Hit",
    "Holder",
    "IndexConnection",
    "IndexReader",
    "Inventory",
    "Lookup",
    "LookupStatus",
    "Member",
    "MemberInfo",
    "MemberKind",
    "MemberState",
    "MembersView",
    "Membership",
    "MembershipKeeper",
    "Names",
    "NodeIndex",
    "OpStream",
    "Published",
    "Tenure",
    "Tier",
    "fold",
    "gallop",
    "text_key8",
    "token_key8",
    "unpack_holders",
]
