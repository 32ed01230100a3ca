//! What the tests of pools share: a disk whose power can be cut, and a node that runs a pool.

pub mod cuts;
pub mod disk;
pub mod model;

use std::{future::Future, rc::Rc};

use corebay_conformance::TestCore;
use corebay_core::disk::{Disk, Durability};
use corebay_core::units::Lba;
use corebay_lvol::{
    CheckReport, CreateOptions, Identity, ImportOptions, Owner, Pool, PoolContext, Volume,
    VolumeId, check,
};

pub use disk::{Medium, MediumDisk};

/// A core with a pool open on it.
pub struct Node {
    pub core: TestCore,
    pub pool: Pool<MediumDisk>,
}

pub fn context(core: &TestCore) -> PoolContext {
    PoolContext {
        reactor: core.reactor.clone(),
        buffers: core.pool.clone(),
    }
}

pub fn options() -> CreateOptions {
    CreateOptions {
        name: "pool".to_owned(),
        uuid: [7; 16],
        journal_bytes: None,
    }
}

/// A machine that may have pools.
pub fn machine_named(machine: u8) -> Owner {
    Owner {
        id: [machine; 16],
        name: format!("machine {machine}"),
    }
}

pub fn named(name: &str) -> Identity {
    Identity {
        name: name.to_owned(),
        uuid: [1; 16],
    }
}

impl Node {
    pub fn create(medium: &Medium) -> Self {
        let core = TestCore::single();
        let (context, disk) = (context(&core), medium.open_all());
        let pool = core.run(async move { Pool::create(&context, disk, &options()).await });
        let pool = pool.expect("a pool");
        Self { core, pool }
    }

    pub fn import(medium: &Medium) -> Result<Self, corebay_lvol::error::PoolError> {
        let core = TestCore::single();
        let (context, disk) = (context(&core), medium.open_all());
        let pool = core.run(async move { Pool::import(&context, disk).await })?;
        Ok(Self { core, pool })
    }

    /// Imports the pool by a disk of which every command takes a turn.
    pub fn import_slow(medium: &Medium) -> Self {
        let core = TestCore::single();
        let (context, disk) = (context(&core), medium.open_slow(&core.reactor));
        let pool = core.run(async move { Pool::import(&context, disk).await });
        let pool = pool.expect("a pool");
        Self { core, pool }
    }

    /// Imports the pool for a machine.
    pub fn import_as(
        medium: &Medium,
        machine: u8,
        force: bool,
    ) -> Result<Self, corebay_lvol::error::PoolError> {
        let core = TestCore::single();
        let (context, disk) = (context(&core), medium.open_all());
        let owner = Some(machine_named(machine));
        let options = ImportOptions { owner, force };
        let pool = core.run(async move { Pool::import_as(&context, disk, &options).await })?;
        Ok(Self { core, pool })
    }

    /// Runs something on the pool to its end.
    pub fn run<T: 'static, F: Future<Output = T> + 'static>(
        &self,
        call: impl FnOnce(Pool<MediumDisk>) -> F,
    ) -> T {
        self.core.run(call(self.pool.clone()))
    }

    pub fn create_volume(&self, name: &str, blocks: u64) -> VolumeId {
        let identity = named(name);
        let made =
            self.run(|pool| async move { pool.create_volume(&identity, blocks, false).await });
        made.expect("a volume")
    }

    pub fn snapshot(&self, of: VolumeId, name: &str) -> VolumeId {
        let list = [(of, named(name))];
        let made = self.run(|pool| async move { pool.snapshot(&list).await });
        made.expect("a snapshot")[0]
    }

    pub fn open(&self, id: VolumeId) -> Rc<Volume<MediumDisk>> {
        Rc::new(self.pool.open(id).expect("open"))
    }

    /// Writes blocks that hold `tag`.
    pub fn write(
        &self,
        volume: &Rc<Volume<MediumDisk>>,
        at: u64,
        blocks: u64,
        tag: u64,
        durability: Durability,
    ) -> Result<(), corebay_core::disk::DiskError> {
        let size = volume.info().block_size.bytes();
        let mut bytes = Vec::new();
        for _ in 0..blocks {
            bytes.extend(disk::block(tag, size));
        }
        let (volume, buffer) = (volume.clone(), self.core.filled(&bytes));
        self.core.run(async move {
            let from = std::slice::from_ref(&buffer);
            volume.write(Lba(at), from, durability).await
        })
    }

    /// The tags of blocks; panics where one is torn or foreign.
    pub fn tags(&self, volume: &Rc<Volume<MediumDisk>>, at: u64, blocks: u64) -> Vec<u64> {
        let size = volume.info().block_size.bytes();
        let most = (1 << 20) / size as u64;
        let mut tags = Vec::new();
        let mut from = at;
        while from < at + blocks {
            let count = most.min(at + blocks - from);
            let (volume, buffer) = (volume.clone(), self.core.buffer(count as usize * size));
            let bytes = self.core.run(async move {
                volume
                    .read(Lba(from), std::slice::from_ref(&buffer))
                    .await
                    .expect("a read");
                buffer.bytes().to_vec()
            });
            tags.extend(bytes.chunks_exact(size).map(disk::tag_of));
            from += count;
        }
        tags
    }

    pub fn deallocate(&self, volume: &Rc<Volume<MediumDisk>>, at: u64, blocks: u64) {
        let volume = volume.clone();
        let done = self
            .core
            .run(async move { volume.deallocate(Lba(at), blocks).await });
        done.expect("deallocate");
    }

    pub fn settle(&self) {
        self.run(|pool| async move { pool.settled().await })
            .expect("settled");
    }

    pub fn checkpoint(&self) {
        self.run(|pool| async move { pool.checkpoint().await })
            .expect("a checkpoint");
    }

    pub fn checked(&self) -> CheckReport {
        let report = self
            .run(|pool| async move { pool.check().await })
            .expect("a check");
        assert_eq!(report.problems, Vec::<String>::new());
        report
    }
}

/// Checks the pool on a medium that nobody has open.
pub fn offline_check(medium: &Medium) -> CheckReport {
    let core = TestCore::single();
    let (context, disk) = (context(&core), medium.open_all());
    let report = core.run(async move { check(&context, disk).await });
    report.expect("a check")
}
