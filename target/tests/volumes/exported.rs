//! The suite that every disk is held to, over a thin volume as a host sees it: our own host, over loopback,
//! from `corebay serve`.

use std::rc::Rc;

use corebay_conformance::{Bed, TestCore, checks};
use corebay_core::{
    buffer::Buffer,
    disk::{Disk, DiskError, DiskInfo, Durability, Space},
    net::os::OsNetwork,
    units::{BlockSize, Lba},
};
use corebay_nvme::{
    fabrics::{Controller, ControllerOptions, Error, Host, HostIdentity, IoQueue},
    spec::{command::nvm::DsmRange, status::Status},
};

use crate::{Appliance, harness::world::host_nqn};

/// How large each volume is.
const SIZE: &str = "200MiB";

/// The most blocks of one command.
const BLOCKS_MAX: u64 = 65_536;

/// A volume of its own for each check.
struct Exported<'a> {
    appliance: &'a Appliance,
    nsid: u32,
}

impl<'a> Exported<'a> {
    fn new(appliance: &'a Appliance, name: &str) -> Self {
        let made = appliance.does(&format!("volume create {name} --size {SIZE} --export"));
        let nsid = made["export"]["nsid"].as_u64().unwrap();
        let nsid = u32::try_from(nsid).unwrap();
        Self { appliance, nsid }
    }
}

impl Bed for Exported<'_> {
    type Disk = Remote;

    fn open(&self, core: &TestCore) -> Remote {
        let serving = &self.appliance.serving;
        let address = format!("127.0.0.1:{}", serving.port()).parse().unwrap();
        let nqn = host_nqn(1);
        let identity = HostIdentity { nqn, id: [9; 16] };
        let options = ControllerOptions::new(address, serving.nqn().parse().unwrap(), identity);
        let host = Host::new(&core.reactor, OsNetwork::new().unwrap(), core.pool.clone());
        let nsid = self.nsid;
        let opened = core.run(async move {
            let controller = Controller::connect(&host, options).await?;
            let (facts, namespace) = (controller.facts()?, controller.namespace(nsid).await?);
            let block_size = BlockSize::from_bytes(u64::from(namespace.block_bytes)).unwrap();
            let info = DiskInfo {
                block_size,
                blocks: namespace.blocks,
                volatile_cache: true,
                deallocate_granularity: None,
                write_uncorrectable: false,
                atomic_write_bytes: namespace.block_bytes,
            };
            let most = facts.transfer_bytes_max().unwrap();
            let transfer_blocks = block_size.blocks_in(most).min(BLOCKS_MAX);
            Ok::<_, Error>(Remote {
                queue: controller.io_queue(0)?,
                _controller: Rc::new(controller),
                nsid,
                info,
                transfer_blocks,
            })
        });
        opened.unwrap()
    }

    fn reopen(&mut self) -> bool {
        // Another association: what was acknowledged is there.
        true
    }
}

/// A namespace, as a disk.
struct Remote {
    queue: IoQueue<OsNetwork>,
    _controller: Rc<Controller<OsNetwork>>,
    nsid: u32,
    info: DiskInfo,
    transfer_blocks: u64,
}

impl Remote {
    fn blocks(&self, buffers: &[Buffer]) -> u32 {
        let bytes: usize = buffers.iter().map(Buffer::len).sum();
        let blocks = self.info.block_size.blocks_in(bytes as u64);
        assert!(blocks <= self.transfer_blocks, "it fits into one command");
        u32::try_from(blocks).unwrap()
    }
}

/// What a host makes of a command's end.
fn outcome(ended: Result<(), Error>) -> Result<(), DiskError> {
    ended.map_err(|error| match error {
        Error::Status(s) if s.same_as(Status::LBA_OUT_OF_RANGE) => DiskError::OutOfRange,
        Error::Status(s) if s.same_as(Status::INVALID_OPCODE) => DiskError::Unsupported,
        other => panic!("{other}"),
    })
}

impl Disk for Remote {
    fn info(&self) -> DiskInfo {
        self.info
    }

    async fn read(&self, at: Lba, into: &[Buffer]) -> Result<(), DiskError> {
        let blocks = self.blocks(into);
        outcome(self.queue.read(self.nsid, at.0, blocks, into).await)
    }

    async fn write(
        &self,
        at: Lba,
        from: &[Buffer],
        durability: Durability,
    ) -> Result<(), DiskError> {
        let (blocks, fua) = (self.blocks(from), durability == Durability::Durable);
        let written = self.queue.write(self.nsid, at.0, blocks, from, fua);
        outcome(written.await)
    }

    async fn flush(&self) -> Result<(), DiskError> {
        outcome(self.queue.flush(self.nsid).await)
    }

    async fn deallocate(&self, at: Lba, blocks: u64) -> Result<(), DiskError> {
        let range = DsmRange::new(at.0, u32::try_from(blocks).unwrap());
        outcome(self.queue.deallocate(self.nsid, &[range]).await)
    }

    async fn write_zeroes(
        &self,
        at: Lba,
        blocks: u64,
        space: Space,
        durability: Durability,
    ) -> Result<(), DiskError> {
        let blocks = u32::try_from(blocks).unwrap();
        let (deallocate, fua) = (
            space == Space::Deallocate,
            durability == Durability::Durable,
        );
        let queue = &self.queue;
        outcome(
            queue
                .write_zeroes(self.nsid, at.0, blocks, deallocate, fua)
                .await,
        )
    }

    async fn write_uncorrectable(&self, at: Lba, blocks: u64) -> Result<(), DiskError> {
        let blocks = u32::try_from(blocks).unwrap();
        outcome(
            self.queue
                .write_uncorrectable(self.nsid, at.0, blocks)
                .await,
        )
    }
}

#[test]
fn an_exported_thin_volume_is_a_disk_like_any_other() {
    let folder = tempfile::tempdir().unwrap();
    let appliance = Appliance::start(folder.path());
    macro_rules! check {
        ($($check:ident),+ $(,)?) => {
            $(
                println!(stringify!($check));
                checks::$check(&mut Exported::new(&appliance, stringify!($check)));
            )+
        };
    }
    check!(
        edges_read_back,
        segments_and_offsets_read_back,
        the_largest_transfer_reads_back,
        never_written_blocks_are_zeroes,
        deallocated_blocks_are_zeroes,
        large_ranges_are_cleared,
        random_operations_agree_with_the_model,
        flushes_and_durable_writes_complete,
        what_was_written_survives_reopening,
        blocks_beyond_the_end_are_refused,
        uncorrectable_blocks_fail_until_written,
        more_operations_than_the_depth_all_end,
    );
    assert_eq!(appliance.does("pool check")["good"], true);
    appliance.serving.end();
}
