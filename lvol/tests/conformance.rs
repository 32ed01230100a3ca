//! The suite that every disk is held to, over volumes of a pool on a ram disk. Each opening of a bed
//! imports the pool as a crash of the process left it.

use std::sync::Arc;

use corebay_conformance::{Bed, TestCore, conformance_tests};
use corebay_core::{
    disk::{
        Disk, Durability,
        ram::{RamDisk, RamMedium},
    },
    units::{BlockSize, Lba},
};
use corebay_lvol::{CreateOptions, Identity, Pool, PoolContext, Volume};

const MEDIUM_BYTES: u64 = 400 << 20;
const VOLUME_BYTES: u64 = 200 << 20;

/// The bytes that beds with a history hold zeroes in that were written.
const WRITTEN_BYTES: u64 = 24 << 20;

/// What came before.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Past {
    /// Nothing.
    Thin,
    /// The space is reserved.
    Thick,
    /// Zeroes were written, and a snapshot holds them.
    Snapshot,
    /// It is a clone of a snapshot of such a volume.
    Clone,
}

struct PoolBed {
    medium: Arc<RamMedium>,
    volume: &'static str,
}

fn identity(name: &str) -> Identity {
    Identity {
        name: name.to_owned(),
        uuid: [1; 16],
    }
}

fn context(core: &TestCore) -> PoolContext {
    PoolContext {
        reactor: core.reactor.clone(),
        buffers: core.pool.clone(),
    }
}

impl PoolBed {
    fn new(block_size: BlockSize, past: Past) -> Self {
        let medium = RamMedium::new(block_size, block_size.blocks_in(MEDIUM_BYTES)).unwrap();
        let core = TestCore::single();
        let (context, disk) = (context(&core), RamDisk::new(medium.clone(), &core.reactor));
        let buffer = core.filled(&vec![0; 1 << 20]);
        let made = async move {
            let options = CreateOptions {
                name: "pool".to_owned(),
                uuid: [9; 16],
                journal_bytes: None,
            };
            let pool = Pool::create(&context, disk, &options).await?;
            let blocks = block_size.blocks_in(VOLUME_BYTES);
            let thick = past == Past::Thick;
            let id = pool.create_volume(&identity("v"), blocks, thick).await?;
            if past == Past::Snapshot || past == Past::Clone {
                let volume = pool.open(id)?;
                for at in (0..WRITTEN_BYTES).step_by(1 << 20) {
                    let at = Lba(block_size.blocks_in(at));
                    let from = std::slice::from_ref(&buffer);
                    volume.write(at, from, Durability::Cached).await?;
                }
                let snapshot = pool.snapshot(&[(id, identity("s"))]).await?[0];
                pool.clone_volume(snapshot, &identity("c")).await?;
            }
            // Some beds begin after a clean end, some after a crash.
            match past {
                Past::Thin | Past::Clone => pool.close().await,
                Past::Thick | Past::Snapshot => Ok(()),
            }
        };
        core.run(made).expect("a pool");
        let volume = if past == Past::Clone { "c" } else { "v" };
        Self { medium, volume }
    }
}

impl Bed for PoolBed {
    type Disk = Volume<RamDisk>;

    fn open(&self, core: &TestCore) -> Self::Disk {
        let disk = RamDisk::new(self.medium.clone(), &core.reactor);
        let (context, name) = (context(core), self.volume);
        let opened = core.run(async move {
            let pool = Pool::import(&context, disk).await?;
            let id = pool.find(name).expect("the bed's volume");
            pool.open(id)
        });
        opened.expect("the volume")
    }

    fn reopen(&mut self) -> bool {
        true
    }
}

/// Every check but those of two cores (a pool is open on its home core alone) and of dropped operations
/// (which wants no task to be left; a pool has three of its own).
macro_rules! checks {
    ($past:expr) => {
        use super::*;
        conformance_tests!(
            |size| PoolBed::new(size, $past),
            edges_read_back,
            segments_and_offsets_read_back,
            the_largest_transfer_reads_back,
            never_written_blocks_are_zeroes,
            written_zeroes_are_zeroes,
            deallocated_blocks_are_zeroes,
            large_ranges_are_cleared,
            random_operations_agree_with_the_model,
            flushes_and_durable_writes_complete,
            what_was_written_survives_reopening,
            blocks_beyond_the_end_are_refused,
            uncorrectable_blocks_fail_until_written,
            uncorrectable_blocks_survive_reopening,
            more_operations_than_the_depth_all_end,
            a_core_may_end_amid_operations,
        );
    };
}

mod thin {
    checks!(Past::Thin);
}

mod thick {
    checks!(Past::Thick);
}

mod after_a_snapshot {
    checks!(Past::Snapshot);
}

mod clone {
    checks!(Past::Clone);
}
