//! Deliberate faults in the product, for the proof that the simulator finds such.
//!
//! This module and every use of it exist only with `--cfg corebay_fault`, which a release build
//! refuses. Such a build behaves as always until one fault is chosen.

#[cfg(not(debug_assertions))]
compile_error!(
    "deliberate faults are not for release builds: take `--cfg corebay_fault` out of RUSTFLAGS"
);

use std::sync::atomic::{AtomicUsize, Ordering};

/// What can be wrong, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A write is answered before it is written.
    AckBeforeWrite,
    /// Force Unit Access is ignored.
    FuaIgnored,
    /// Flush does nothing.
    FlushSkipped,
    /// Now and then a command is never answered.
    CompletionLost,
    /// A host may come back while commands of its former association execute.
    FormerNotAwaited,
    /// A Compare that fails keeps its working space.
    ScratchLeaked,
    /// Compare and Write does not keep others out.
    FusedUnlocked,
    /// Compare and Write keeps out the writes of its own core alone.
    FusedLocksOneCore,
    /// A Copy writes into what Compare and Write has locked.
    CopyUngated,
    /// A connection that has received what one turn takes is asked again only after an edge.
    EdgeForgotten,
    /// A controller reset leaves the I/O queues as they are.
    QueuesOutliveReset,
    /// Writes are not durable although the host has turned the write cache off.
    CacheOffIgnored,
    /// A flush of one namespace flushes another.
    WrongFlush,
    /// An array changes its members in place without the journal.
    ArrayJournalSkipped,
    /// An array acknowledges before its journal is durable.
    ArrayJournalCached,
    /// An array takes the marks of regions from its map before what was written under them is durable.
    ArrayUnmarksEarly,
    /// A drive's commands that a reset took away count as done.
    DriverForgetsReset,
    /// A pool names a checkpoint in its superblock before the pages of it are durable.
    PoolSuperblockEarly,
    /// A pool makes blocks readable before their data are durable.
    PoolDataUnflushed,
    /// A pool acknowledges a batch of its journal before it is durable.
    PoolJournalCached,
    /// A pool does not wait for reads of what two volumes had before the one that is left with it writes it.
    PoolLooksNotAwaited,
}

/// All of them, with their names on the command line.
pub const ALL: [(&str, Fault); 21] = [
    ("ack_before_write", Fault::AckBeforeWrite),
    ("fua_ignored", Fault::FuaIgnored),
    ("flush_skipped", Fault::FlushSkipped),
    ("completion_lost", Fault::CompletionLost),
    ("former_not_awaited", Fault::FormerNotAwaited),
    ("scratch_leaked", Fault::ScratchLeaked),
    ("fused_unlocked", Fault::FusedUnlocked),
    ("fused_locks_one_core", Fault::FusedLocksOneCore),
    ("copy_ungated", Fault::CopyUngated),
    ("edge_forgotten", Fault::EdgeForgotten),
    ("queues_outlive_reset", Fault::QueuesOutliveReset),
    ("cache_off_ignored", Fault::CacheOffIgnored),
    ("wrong_flush", Fault::WrongFlush),
    ("array_journal_skipped", Fault::ArrayJournalSkipped),
    ("array_journal_cached", Fault::ArrayJournalCached),
    ("array_unmarks_early", Fault::ArrayUnmarksEarly),
    ("driver_forgets_reset", Fault::DriverForgetsReset),
    ("pool_superblock_early", Fault::PoolSuperblockEarly),
    ("pool_data_unflushed", Fault::PoolDataUnflushed),
    ("pool_journal_cached", Fault::PoolJournalCached),
    ("pool_looks_not_awaited", Fault::PoolLooksNotAwaited),
];

static CHOSEN: AtomicUsize = AtomicUsize::new(usize::MAX);

/// Makes this fault, and no other, from now on in the whole process; `None`: none.
pub fn choose(fault: Option<Fault>) {
    CHOSEN.store(
        fault.map_or(usize::MAX, |fault| fault as usize),
        Ordering::Relaxed,
    );
}

/// True where this fault was chosen.
#[must_use]
pub fn is(fault: Fault) -> bool {
    CHOSEN.load(Ordering::Relaxed) == fault as usize
}
