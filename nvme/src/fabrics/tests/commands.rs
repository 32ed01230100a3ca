//! Commands against targets that keep to the protocol, each in its own manner.

use std::{cell::Cell, rc::Rc};

use corebay_core::rng::Rng;
use zerocopy::IntoBytes;

use super::{
    World, cut, digests,
    peer::{BLOCK, BLOCKS, CNTLID, Manner},
};
use crate::{
    fabrics::{Data, DiscoveryLog, Error, discover},
    spec::{
        command::nvm::{self, DsmRange},
        log::DiscoveryLogHeader,
        sgl::Sgl,
        status::Status,
    },
};

#[test]
fn it_connects_identifies_and_shuts_down() {
    let mut world = World::new(1, Manner::default());
    let mut options = world.options();
    options.io_queues = 4;
    let controller = world.connect(options);
    assert_eq!(controller.io_queues(), 4);
    let facts = controller.facts().unwrap();
    assert_eq!(facts.cntlid, CNTLID);
    assert_eq!(facts.depth, 127);
    assert_eq!(facts.transfer_bytes_max(), Some(1 << 20));
    let controller = Rc::new(controller);
    let one = controller.clone();
    let (nsids, namespace) =
        world.run(async move { (one.active_namespaces().await, one.namespace(1).await) });
    assert_eq!(nsids, Ok(vec![1, 2, 9]));
    let namespace = namespace.unwrap();
    assert_eq!(
        (namespace.block_bytes, namespace.blocks),
        (512, BLOCKS as u64)
    );
    let controller = Rc::try_unwrap(controller).ok().unwrap();
    assert_eq!(world.run(controller.shutdown()), Ok(()));
    assert!(world.target.shut_down);
    world.until(|world| world.host.connections() == 0);
}

#[test]
fn fewer_queues_and_less_depth_are_taken_as_granted() {
    let manner = Manner {
        queues: 2,
        mqes: 15,
        ..Manner::default()
    };
    let mut world = World::new(2, manner);
    let mut options = world.options();
    options.io_queues = 8;
    let controller = world.connect(options);
    assert_eq!(controller.io_queues(), 2);
    assert_eq!(controller.facts().unwrap().depth, 15);
    assert!(controller.io_queue(2).is_err());
}

/// Random reads and writes of several tasks, each on its own blocks, against a model.
fn exercise(seed: u64, manner: Manner, asked: u8, bytes_max: usize) {
    const TASKS: usize = 12;
    const ROUNDS: usize = 8;
    let mut world = World::chopped(seed, manner, bytes_max);
    let mut options = world.options();
    options.digests = digests(asked);
    options.depth = 8;
    options.io_queues = 2;
    let controller = Rc::new(world.connect(options));
    let done = Rc::new(Cell::new(0));
    for task in 0..TASKS {
        let queue = controller.io_queue((task % 2) as u16).unwrap();
        let buffers = world.host.buffers().clone();
        let mut rng = Rng::from_seed(seed ^ task as u64);
        let done = done.clone();
        let work = async move {
            let first = task * (BLOCKS / TASKS);
            let mut model = vec![0; (BLOCKS / TASKS) * BLOCK];
            for _ in 0..ROUNDS {
                let most = if rng.once_in(3) { 256 } else { 12 };
                let blocks = 1 + rng.below(most) as usize;
                let at = rng.below((BLOCKS / TASKS - blocks) as u64) as usize;
                let range = at * BLOCK..(at + blocks) * BLOCK;
                let slba = (first + at) as u64;
                let count = 1 + rng.below(16) as usize;
                let mut whole = buffers.allocate(blocks * BLOCK).await;
                let outcome = if rng.once_in(2) {
                    rng.fill(&mut whole.bytes_mut());
                    model[range].copy_from_slice(&whole.bytes());
                    let parts = cut(&whole, count);
                    queue.write(1, slba, blocks as u32, &parts, false).await
                } else {
                    whole.bytes_mut().fill(0xEE);
                    let parts = cut(&whole, count);
                    let outcome = queue.read(1, slba, blocks as u32, &parts).await;
                    assert!(*whole.bytes() == model[range], "what was written is read");
                    outcome
                };
                assert_eq!(outcome, Ok(()));
            }
            done.set(done.get() + 1);
        };
        world.start(work);
    }
    world.until(|_| done.get() == TASKS);
}

#[test]
fn data_survives_every_manner_of_transfer() {
    let mut rng = Rng::from_seed(99);
    for seed in 0..24 {
        let manner = Manner {
            digests: digests(rng.below(4) as u8),
            cpda: [0, 3, 31][rng.below(3) as usize],
            maxh2cdata: [4096, 5000, 131_072][rng.below(3) as usize],
            in_capsule: [0, 4096, 8192][rng.below(3) as usize],
            chunk: [1020, 4096, 65_536, u32::MAX][rng.below(4) as usize],
            many_r2ts: rng.once_in(2),
            success_flag: rng.once_in(2),
            shuffle: rng.once_in(2),
            ..Manner::default()
        };
        let bytes_max = [97, 1000, 40_000, 1 << 20][rng.below(4) as usize];
        exercise(seed, manner, rng.below(4) as u8, bytes_max);
    }
}

#[test]
fn small_writes_travel_in_the_capsule() {
    let mut world = World::new(3, Manner::default());
    let options = world.options();
    let controller = Rc::new(world.connect(options));
    for (blocks, in_capsule) in [(8, true), (9, false)] {
        let queue = controller.io_queue(0).unwrap();
        let buffer = world.buffer(blocks * BLOCK);
        let outcome =
            world.run(async move { queue.write(1, 0, blocks as u32, &[buffer], true).await });
        assert_eq!(outcome, Ok(()));
        let sgl = world.target.executed.last().unwrap().sgl_parsed();
        assert_eq!(matches!(sgl, Sgl::OffsetBlock { .. }), in_capsule);
    }
}

#[test]
fn statuses_reach_the_caller() {
    let mut world = World::new(4, Manner::default());
    let options = world.options();
    let controller = Rc::new(world.connect(options));
    let queue = controller.io_queue(0).unwrap();
    let buffer = world.buffer(2 * BLOCK);
    let outcomes = world.run(async move {
        let data = [buffer.slice(0..BLOCK)];
        let outside = queue.read(1, BLOCKS as u64, 1, &data).await;
        let mut ones = buffer.slice(0..BLOCK);
        ones.bytes_mut().fill(1);
        let differs = queue.compare(1, 5, 1, &data).await;
        let written = queue.write(1, 5, 1, &data, false).await;
        let equal = queue.compare(1, 5, 1, &data).await;
        let new = [buffer.slice(BLOCK..2 * BLOCK)];
        let swapped = queue.compare_and_write(1, 5, 1, &data, &new).await;
        let none = queue.read(1, 0, 0, &data).await;
        let zeroed = queue.write_zeroes(1, 0, 8, true, false).await;
        let trimmed = queue.deallocate(1, &[DsmRange::new(0, 1); 256]).await;
        let flushed = queue.flush(1).await;
        [
            outside, differs, written, equal, swapped, none, zeroed, trimmed, flushed,
        ]
    });
    let expected = [
        Err(Error::Status(Status::LBA_OUT_OF_RANGE)),
        Err(Error::Status(Status::COMPARE_FAILURE)),
        Ok(()),
        Ok(()),
        Ok(()),
        Err(Error::Invalid("a command has 1 to 65536 blocks")),
        Ok(()),
        Ok(()),
        Ok(()),
    ];
    assert_eq!(outcomes, expected);
}

#[test]
fn a_full_queue_makes_tasks_wait_their_turn() {
    let mut world = World::new(5, Manner::default());
    let mut options = world.options();
    options.depth = 3;
    let controller = Rc::new(world.connect(options));
    let order = Rc::new(std::cell::RefCell::new(Vec::new()));
    for task in 0..40 {
        let queue = controller.io_queue(0).unwrap();
        let order = order.clone();
        world.start(async move {
            queue.flush(1).await.unwrap();
            order.borrow_mut().push(task);
        });
    }
    world.until(|_| order.borrow().len() == 40);
    assert!(order.borrow().is_sorted());
}

#[test]
fn a_dropped_read_keeps_its_buffer_until_it_completes_and_writes_nothing() {
    let manner = Manner {
        silent: true,
        ..Manner::default()
    };
    let mut world = World::new(6, manner);
    world.target.disk.fill(7);
    let options = world.options();
    let controller = Rc::new(world.connect(options));
    let queue = controller.io_queue(0).unwrap();
    let mut buffer = world.buffer(BLOCK);
    buffer.bytes_mut().fill(0);
    let window = buffer.clone();
    let mut read = Box::pin(async move { queue.read(1, 0, 1, &[window]).await });
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(read.as_mut().poll(&mut context).is_pending());
    world.turn();
    let free = world.host.buffers().free_bytes();
    drop(read);
    let seen = buffer.clone();
    drop(buffer);
    assert_eq!(
        world.host.buffers().free_bytes(),
        free,
        "the table keeps it"
    );
    // The answer comes late: to a command that nobody waits for.
    let cid = 0;
    let answer = super::peer::pdu(
        crate::spec::tcp::C2hData::new(cid, 0, BLOCK as u32, 0x0C).as_bytes(),
        &[7; BLOCK],
        digests(0),
    );
    // Connect used generation 0 of slot 0; the read has generation 1.
    let mut answer = answer;
    let depth_bits = 7;
    answer[8..10].copy_from_slice(&(1u16 << depth_bits).to_le_bytes());
    world.target.peers[1].say(&answer);
    world.until(|world| world.host.connections() == 2 && world.host.buffers().free_bytes() == free);
    for _ in 0..10 {
        world.turn();
    }
    assert!(seen.bytes().iter().all(|byte| *byte == 0));
    drop(seen);
    assert_eq!(
        world.host.buffers().free_bytes(),
        world.host.buffers().total_bytes()
    );
}

#[test]
fn a_dropped_write_is_sent_whole_all_the_same() {
    let mut world = World::chopped(7, Manner::default(), 100);
    let options = world.options();
    let controller = Rc::new(world.connect(options));
    let queue = controller.io_queue(0).unwrap();
    let mut buffer = world.buffer(64 * BLOCK);
    buffer.bytes_mut().fill(9);
    let mut write = Box::pin(async move { queue.write(1, 0, 64, &[buffer], false).await });
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(write.as_mut().poll(&mut context).is_pending());
    drop(write);
    world.until(|world| world.target.disk[64 * BLOCK - 1] == 9);
    world.until(|world| world.host.buffers().free_bytes() == world.host.buffers().total_bytes());
}

#[test]
fn any_command_can_be_sent_and_its_status_seen() {
    let mut world = World::new(8, Manner::default());
    let options = world.options();
    let controller = Rc::new(world.connect(options));
    let queue = controller.io_queue(0).unwrap();
    let one = controller.clone();
    let (io, admin) = world.run(async move {
        let io = queue.io_command(&nvm::flush(1), Data::None).await;
        let sqe = crate::spec::command::SubmissionEntry::new(0xC0, 0);
        (io, one.admin_command(&sqe, Data::None).await)
    });
    assert!(io.unwrap().status.is_success());
    assert_eq!(admin.unwrap().status, Status::INVALID_OPCODE);
}

#[test]
fn a_disconnected_queue_is_no_loss_for_the_others() {
    let mut world = World::new(11, Manner::default());
    let mut options = world.options();
    options.io_queues = 2;
    let controller = Rc::new(world.connect(options));
    let (a, b) = (
        controller.io_queue(0).unwrap(),
        controller.io_queue(1).unwrap(),
    );
    let outcomes = world.run(async move {
        let ended = a.disconnect().await.map(|completion| completion.status);
        (ended, a.flush(1).await, b.flush(1).await)
    });
    let closed = Err(Error::Closed);
    assert_eq!(outcomes, (Ok(Status::SUCCESS), closed, Ok(())));
    world.until(|world| world.host.connections() == 2);
    let queue = controller.io_queue(1).unwrap();
    assert_eq!(world.run(async move { queue.flush(1).await }), Ok(()));
    assert_eq!(controller.associations(), 1);
}

fn discovery_page(generation: u64, records: u64, nqn: &str) -> Vec<u8> {
    let mut page = vec![0; 1024 * (records as usize + 1)];
    page[0..8].copy_from_slice(&generation.to_le_bytes());
    page[8..16].copy_from_slice(&records.to_le_bytes());
    for record in page[1024..].chunks_mut(1024) {
        record[0] = 3;
        record[32..36].copy_from_slice(b"4420");
        record[256..256 + nqn.len()].copy_from_slice(nqn.as_bytes());
        record[512..521].copy_from_slice(b"192.0.2.1");
    }
    page
}

fn read_discovery(world: &mut World) -> Result<DiscoveryLog, Error> {
    let host = world.host.clone();
    let mut options = world.options();
    options.io_queues = 0;
    world.run(async move { discover(&host, options).await })
}

#[test]
fn a_discovery_log_that_changes_is_read_again() {
    let mut world = World::new(9, Manner::default());
    let mut reads = 0;
    world.target.log = Some(Box::new(move |page| {
        reads += 1;
        // Changes after the first header was read, and once more while the records are.
        let generation = [1, 2, 3, 3][(reads - 1usize).min(3)];
        let bytes = discovery_page(generation, 5 + generation, "nqn.2024-01.example:a");
        let at = page.offset as usize;
        let mut out = bytes[at.min(bytes.len())..].to_vec();
        out.resize(page.bytes() as usize, 0);
        out
    }));
    let log = read_discovery(&mut world).unwrap();
    assert_eq!((log.generation, log.records.len()), (3, 8));
    let record = &log.records[7];
    assert_eq!(record.subnqn, "nqn.2024-01.example:a");
    assert_eq!((&*record.traddr, &*record.trsvcid), ("192.0.2.1", "4420"));
    assert!(world.target.shut_down);
}

#[test]
fn a_discovery_log_that_becomes_shorter_is_read_again() {
    let mut world = World::new(9, Manner::default());
    let mut reads = 0;
    world.target.log = Some(Box::new(move |page| {
        reads += 1;
        let (generation, records) = if reads == 1 { (1, 9) } else { (2, 0) };
        let bytes = discovery_page(generation, records, "nqn.2024-01.example:a");
        let at = page.offset as usize;
        let mut out = bytes.get(at..).unwrap_or_default().to_vec();
        if at < bytes.len() {
            out.resize(page.bytes() as usize, 0);
        }
        out
    }));
    let log = read_discovery(&mut world).unwrap();
    assert_eq!((log.generation, log.records.len()), (2, 0));
}

#[test]
fn a_discovery_log_without_end_is_an_error() {
    for records in [1 << 20, u64::MAX] {
        let mut world = World::new(10, Manner::default());
        world.target.log = Some(Box::new(move |page| {
            let mut out = DiscoveryLogHeader::new_records(records);
            out.resize(page.bytes() as usize, 0);
            out
        }));
        let error = read_discovery(&mut world).unwrap_err();
        assert!(matches!(error, Error::Controller(_)), "{error}");
    }
    let mut world = World::new(10, Manner::default());
    let mut generation = 0;
    world.target.log = Some(Box::new(move |page| {
        generation += 1;
        let mut out = discovery_page(generation, 1, "nqn.x");
        out.resize(page.bytes() as usize, 0);
        out
    }));
    let error = read_discovery(&mut world).unwrap_err();
    assert!(matches!(error, Error::Controller(_)), "{error}");
}

/// A header that promises records.
trait HeaderOfRecords {
    fn new_records(records: u64) -> Vec<u8>;
}

impl HeaderOfRecords for DiscoveryLogHeader {
    fn new_records(records: u64) -> Vec<u8> {
        let mut page = vec![0; 1024];
        page[8..16].copy_from_slice(&records.to_le_bytes());
        page
    }
}
