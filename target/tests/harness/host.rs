//! A host of a [`World`]: associations with their admin and I/O queues.

use std::{net::SocketAddr, rc::Rc};

use corebay_nvme::spec::{
    command::{Fuse, SubmissionEntry, admin, nvm},
    fabrics::{
        CATTR_DISABLE_SQ_FLOW_CONTROL, CNTLID_DYNAMIC, ConnectData, PropertySize, connect,
        property_get, property_set,
    },
    nqn::Nqn,
    property,
    status::Status,
    tcp::IcReq,
};
use zerocopy::IntoBytes;

use super::{
    wire::{Completed, Connection, Payload, Pipe, WorldPipe},
    world::{SUBSYSTEM, World, host_nqn},
};

/// CC: enabled, entries of 64 and 16 bytes.
pub const CC_ENABLED: u64 = 0x0046_0001;

/// A queue in a world.
pub type Queue = Connection<WorldPipe>;

/// How a host connects.
#[derive(Clone)]
pub struct Host {
    pub world: Rc<World>,
    pub nqn: Nqn,
    pub id: [u8; 16],
    pub subsystem: Nqn,
    pub to: SocketAddr,
    pub request: IcReq,
    pub keep_alive_ms: u32,
    pub admin_depth: u16,
    pub flow_control: bool,
    /// Bytes that the target receives at a time.
    pub cut: usize,
}

impl Host {
    /// The `n`th host.
    pub fn new(world: &Rc<World>, n: usize) -> Self {
        let mut id = [0xA5; 16];
        id[..8].copy_from_slice(&(n as u64).to_le_bytes());
        Self {
            world: world.clone(),
            nqn: host_nqn(n),
            id,
            subsystem: SUBSYSTEM.parse().unwrap(),
            to: world.plan.listen[0].0,
            request: IcReq::new(0, 0, 0),
            keep_alive_ms: 0,
            admin_depth: 32,
            flow_control: false,
            cut: usize::MAX,
        }
    }

    /// A host of the discovery service.
    pub fn discovery(world: &Rc<World>, n: usize) -> Self {
        Self {
            subsystem: Nqn::discovery(),
            ..Self::new(world, n)
        }
    }

    /// A bare stream.
    pub fn pipe(&self) -> WorldPipe {
        let stream = self.world.connect_to(self.to);
        stream.cut(self.cut);
        WorldPipe {
            world: self.world.clone(),
            stream,
        }
    }

    /// A connection that is set up, without its Connect command.
    pub fn open(&self) -> Queue {
        Connection::open(self.pipe(), &self.request)
    }

    pub fn connect_data(&self, cntlid: u16) -> ConnectData {
        ConnectData::new(self.id, cntlid, &self.subsystem, &self.nqn)
    }

    /// The Connect command of a queue of so many entries.
    pub fn connect_command(&self, qid: u16, depth: u16) -> SubmissionEntry {
        let cattr = match self.flow_control {
            true => 0,
            false => CATTR_DISABLE_SQ_FLOW_CONTROL,
        };
        let kato = if qid == 0 { self.keep_alive_ms } else { 0 };
        connect(qid, depth - 1, cattr, kato)
    }

    /// Connects a queue.
    #[track_caller]
    pub fn try_queue(&self, qid: u16, depth: u16, cntlid: u16) -> (Queue, Completed) {
        let mut queue = self.open();
        let data = self.connect_data(cntlid);
        let sqe = self.connect_command(qid, depth);
        let done = queue.command(sqe, Payload::Capsule(data.as_bytes()));
        (queue, done)
    }

    #[track_caller]
    pub fn queue(&self, qid: u16, depth: u16, cntlid: u16) -> (Queue, u16) {
        let (queue, done) = self.try_queue(qid, depth, cntlid);
        let cntlid = done.value() as u16;
        (queue, cntlid)
    }

    /// An association whose controller is enabled.
    #[track_caller]
    pub fn associate(&self) -> Association {
        let (mut admin, cntlid) = self.queue(0, self.admin_depth, CNTLID_DYNAMIC);
        admin.set_property(property::CC, CC_ENABLED).value();
        assert_eq!(admin.property(property::CSTS).value() & 1, 1);
        Association {
            host: self.clone(),
            admin,
            cntlid,
        }
    }

    /// An association with one I/O queue.
    #[track_caller]
    pub fn with_queue(&self, depth: u16) -> (Association, Queue) {
        let association = self.associate();
        let queue = association.io(1, depth);
        (association, queue)
    }
}

/// A host's association with the subsystem.
pub struct Association {
    pub host: Host,
    pub admin: Queue,
    pub cntlid: u16,
}

impl Association {
    /// Connects an I/O queue.
    #[track_caller]
    pub fn io(&self, qid: u16, depth: u16) -> Queue {
        self.host.queue(qid, depth, self.cntlid).0
    }

    #[track_caller]
    pub fn identify(&mut self, cns: u8, nsid: u32) -> Completed {
        let sqe = admin::identify(cns, nsid, 0);
        self.admin.command(sqe, Payload::ToHost(4096))
    }

    /// A log page's bytes from `offset` on.
    #[track_caller]
    pub fn log(&mut self, lid: u8, offset: u64, bytes: usize) -> Completed {
        let sqe = admin::get_log_page(lid, u32::MAX, offset, (bytes / 4) as u32, false);
        self.admin.command(sqe, Payload::ToHost(bytes))
    }

    #[track_caller]
    pub fn feature(&mut self, fid: u8, sel: u8) -> Completed {
        let sqe = admin::get_features(fid, sel, 0, 0);
        self.admin.command(sqe, Payload::None)
    }

    #[track_caller]
    pub fn set_feature(&mut self, fid: u8, value: u32) -> Completed {
        let sqe = admin::set_features(fid, 0, value);
        self.admin.command(sqe, Payload::None)
    }
}

impl Queue {
    #[track_caller]
    pub fn set_property(&mut self, offset: u32, value: u64) -> Completed {
        let sqe = property_set(offset, PropertySize::Four, value);
        self.command(sqe, Payload::None)
    }

    #[track_caller]
    pub fn property(&mut self, offset: u32) -> Completed {
        self.command(property_get(offset, PropertySize::Four), Payload::None)
    }

    /// Writes whole blocks, in the capsule where they fit.
    #[track_caller]
    pub fn write(&mut self, nsid: u32, lba: u64, block: usize, data: &[u8]) -> Completed {
        let sqe = nvm::write(nsid, lba, (data.len() / block) as u32, false);
        match data.len() <= 8192 {
            true => self.command(sqe, Payload::Capsule(data)),
            false => self.command(sqe, Payload::Asked(data)),
        }
    }

    #[track_caller]
    pub fn read(&mut self, nsid: u32, lba: u64, block: usize, blocks: usize) -> Completed {
        let sqe = nvm::read(nsid, lba, blocks as u32);
        self.command(sqe, Payload::ToHost(blocks * block))
    }

    /// Sends a fused pair; gives the completions of Compare and Write.
    #[track_caller]
    pub fn compare_and_write(
        &mut self,
        nsid: u32,
        lba: u64,
        old: &[u8],
        new: &[u8],
    ) -> (Completed, Completed) {
        let compare = nvm::compare(nsid, lba, 1).with_fuse(Fuse::First);
        let write = nvm::write(nsid, lba, 1, false).with_fuse(Fuse::Second);
        let (first, mut bytes) = self.capsule(compare, Payload::Capsule(old));
        let (second, more) = self.capsule(write, Payload::Capsule(new));
        bytes.extend(more);
        self.pipe.send_all(&bytes);
        (self.complete(first), self.complete(second))
    }

    /// The stream is closed from the host's side.
    pub fn vanish(self) {
        drop(self);
    }
}

/// Bytes that say where they belong.
pub fn pattern(seed: u64, bytes: usize) -> Vec<u8> {
    let mut data = vec![0; bytes];
    corebay_core::rng::Rng::from_seed(seed).fill(&mut data);
    data
}

/// A host that does nothing wrong, to see that it is served whatever others do.
pub struct Witness {
    pub association: Association,
    pub queue: Queue,
    turn: u64,
}

impl Witness {
    #[track_caller]
    pub fn new(world: &Rc<World>) -> Self {
        let (association, queue) = Host::new(world, 9999).with_queue(32);
        Self {
            association,
            queue,
            turn: 0,
        }
    }

    /// Writes and reads back, both ways that data go.
    #[track_caller]
    pub fn is_served(&mut self) {
        self.turn += 1;
        for bytes in [4096, 32 << 10] {
            let data = pattern(self.turn, bytes);
            self.queue.write(1, 0, 4096, &data).ok();
            let read = self.queue.read(1, 0, 4096, bytes / 4096).ok();
            assert!(read == data, "the witness reads what it did not write");
        }
        self.association
            .admin
            .command(admin::keep_alive(), Payload::None)
            .ok();
    }
}

/// A status without "do not retry" and "more".
#[track_caller]
pub fn assert_status(done: &Completed, expected: Status) {
    assert!(
        done.status.same_as(expected),
        "{} instead of {expected}",
        done.status
    );
}
