//! Pools over a disk, and the volumes in them: thin maps, snapshots, clones, and what makes them
//! survive a loss of power. `FORMAT.md` beside this crate maps what lies on the disk.
//!
//! # On several cores
//! A pool lives on one core, its *home*; its volumes are disks on every core.
//!
//! 1. On the home core: [`Pool::import`] or [`Pool::create`], over that core's disk. All administration
//!    is done there, by [`Pool`]'s methods. [`Pool::share`], once, gives a [`PoolHandle`] (`Send`,
//!    `Sync`); it says how many cores there are and whether they sleep.
//! 2. On each other core: [`PoolCore::open`], once, with the handle, the core's reactor, and that core's
//!    own disk over the same medium. The home core has its own: [`Pool::core`].
//! 3. [`Pool::volume_handle`] gives a [`VolumeHandle`] (`Send`, `Sync`), which any core opens, at once:
//!    [`Volume::open`] with its `PoolCore`. The [`Volume`] is a [`Disk`](corebay_core::disk::Disk).
//!    [`Pool::open`] is short for that on the home core.
//! 4. A volume that is open on some core is not deleted, and its pool not closed ([`PoolError::Busy`]).
//!
//! A core finds blocks by the volume's flat map, and reads and overwrites them itself. First writes,
//! writes after a snapshot, deallocation, and reads of what has not been looked at since the pool was
//! opened ask the home core by message, which the reactors of both deliver in their turns.
//!
//! Invariants:
//! - A pool's state changes by [records](format::record) alone. A record takes effect, in memory and
//!   for readers, once its batch is durable in the journal, and in the journal's order; replaying the
//!   journal over a checkpoint therefore makes the same state.
//! - A block is readable only where a record said so, and a record is written only after the data
//!   that it makes readable are durable. What a block's place held before is never read.
//! - An extent that lost its last reference is given out again only once that is durable and every
//!   operation, of any core, that might still use the old map has ended.
//! - A page of metadata is never written over: a checkpoint writes new pages elsewhere, and what the
//!   last checkpoint refers to is free only when both superblocks refer to the next one.
//! - What is read from the disk is an allegation until `format` has parsed it: a wrong byte is
//!   mended from the other copy, or refused, and never makes a panic.
//!
//! A pool over an array may have its journal in the array's mirrored zone ([`PoolDisk`]).
//!
//! # What there is to call
//! - Pools ([`Pool`]): `create`, `create_as`, `import`, `import_as`, `close`, `release`, `destroy`,
//!   `extend` (onto a grown disk), `rename_pool`, `owner`, `status`, `check`, `checkpoint`, `settled`; without opening one: [`probe`],
//!   [`destroy`], [`check`].
//! - Volumes: `create_volume`, `snapshot` (of several at one point in time), `clone_volume`, `roll_back`,
//!   `resize`, `rename`, `delete`, `set_flags`, `open` (a [`Volume`] is a disk).
//! - Families: `origin_of`, `snapshots_of` (oldest first), `inflate` (an [`Inflate`], whose `step` copies a
//!   part at a time), `promote`.
//! - Space: `watch` (events for whoever runs the pool), `space_level`, `thresholds`, `set_thresholds`,
//!   `namespace_space` (NSZE, NCAP, NUSE), `volume_space` (exclusive and shared bytes), `status`.
//! - Limits: `set_limits` ([`Limits`]); what hosts may do to a
//!   [`Volume`], on all cores together; who passes on their commands asks it when each may begin.
//! - Space beneath: `set_trim_rate`, `trim_free` (free extents are told to the disk in the background).
//! - Exports: `set_namespace_ids`, `set_export`, `exports`, `free_nsid`, `set_attributes`.
//! - Streams: `send` gives a [`Sender`], whose `next` makes a frame at a time for any sink; `receive` a
//!   [`Receiver`], whose `push` takes bytes as they come; `abort_receive`. `VolumeRecord::receiving` says
//!   from which block an interrupted stream is to be sent again.
//! - Images: `read_image`, `write_image`, and [`SparseFile`] for the file's side, on a thread that may
//!   wait.
//!
//! [`PoolError::Busy`]: error::PoolError::Busy

#![forbid(unsafe_code)]

pub mod error;
pub mod format;

mod across;
mod bits;
mod check;
mod checkpoint;
mod device;
mod dying;
mod ends;
mod epoch;
mod extend;
mod family;
mod flat;
mod gather;
mod identity;
mod image;
mod import;
mod journal;
mod lost;
mod manage;
mod owner;
mod pool;
mod publish;
mod qos;
mod receive;
mod send;
mod slow;
mod space;
mod staged;
mod state;
mod sync;
mod trim;
mod volume;
mod walk;

pub use across::{PoolCore, PoolHandle, VolumeHandle};
pub use check::{CheckReport, check};
pub use device::PoolDisk;
pub use family::{Inflate, InflateProgress};
pub use format::{
    export::Export,
    limits::{Limits, Rate},
    superblock::{Owner, Thresholds},
};
pub use identity::NamespaceIds;
pub use image::{ImageReader, ImageWriter, Piece, SparseFile};
pub use import::CreateOptions;
pub use manage::{Identity, Pool, PoolStatus, VolumeId};
pub use owner::{ImportOptions, PoolLabel, destroy, probe};
pub use pool::PoolContext;
pub use receive::{ReceiveError, ReceiveOptions, Receiver};
pub use send::{SendProgress, Sender};
pub use space::{NamespaceSpace, PoolEvent, PoolWatch, SpaceLevel, VolumeSpace};
pub use volume::Volume;
