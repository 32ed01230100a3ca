//! Controllers that do not keep to the protocol: each violation is answered as it should be, and no
//! bytes make the host panic or hang.

use std::rc::Rc;

use corebay_core::rng::Rng;
use proptest::prelude::*;
use zerocopy::IntoBytes;

use super::{
    World, digests,
    peer::{BLOCK, Manner, pdu},
};
use crate::{
    fabrics::{Controller, ControllerOptions, Digests, Error, IoQueue},
    spec::{
        command::SubmissionEntry,
        completion::CompletionEntry,
        tcp::{C2hData, CapsuleCmd, CapsuleResp, FatalErrorStatus as Fes, H2cData, IcResp, R2t},
    },
};

/// The CID of the first command after Connect on a queue of 8: slot 0, generation 1.
const CID: u16 = 1 << 3;

struct Case {
    world: World,
    controller: Rc<Controller<super::net::MemNetwork>>,
    queue: IoQueue<super::net::MemNetwork>,
}

impl Case {
    fn new(seed: u64, digests: Digests) -> Self {
        let manner = Manner {
            in_capsule: 512,
            ..Manner::default()
        };
        let mut world = World::new(seed, manner);
        let options = ControllerOptions {
            digests,
            depth: 8,
            ..world.options()
        };
        let controller = Rc::new(world.connect(options));
        world.target.manner.silent = true;
        let queue = controller.io_queue(0).unwrap();
        Self {
            world,
            controller,
            queue,
        }
    }

    /// What becomes of a command of two blocks when the controller says `bytes`.
    fn outcome(&mut self, write: bool, bytes: &[u8]) -> Result<(), Error> {
        let queue = self.queue.clone();
        let buffer = self.world.buffer(2 * BLOCK);
        let out = self.world.start(async move {
            let data = [buffer];
            if write {
                queue.write(1, 0, 2, &data, false).await
            } else {
                queue.read(1, 0, 2, &data).await
            }
        });
        for _ in 0..3 {
            self.world.turn();
        }
        self.world.target.peers[1].say(bytes);
        self.world.until(|_| out.borrow().is_some());
        out.take().unwrap()
    }
}

fn data(cid: u16, offset: u32, bytes: usize, flags: u8) -> Vec<u8> {
    let header = C2hData::new(cid, offset, bytes as u32, flags);
    pdu(header.as_bytes(), &vec![5; bytes], digests(0))
}

fn r2t(cid: u16, offset: u32, bytes: u32) -> Vec<u8> {
    pdu(R2t::new(cid, 3, offset, bytes).as_bytes(), &[], digests(0))
}

fn response(cid: u16) -> Vec<u8> {
    let header = CapsuleResp::new(CompletionEntry::success(cid));
    pdu(header.as_bytes(), &[], digests(0))
}

/// `bytes` with one of them changed.
fn with(mut bytes: Vec<u8>, at: usize, value: u8) -> Vec<u8> {
    bytes[at] = value;
    bytes
}

const READ: bool = false;
const WRITE: bool = true;
const LAST: u8 = 4;
const SUCCESS: u8 = 8;
const WHOLE: usize = 2 * BLOCK;
const FIELD: Fes = Fes::InvalidPduHeaderField;
const ORDER: Fes = Fes::PduSequenceError;
const RANGE: Fes = Fes::DataTransferOutOfRange;

/// Its name, the command that it is said to, the bytes, and how it must be answered.
type Violation = (&'static str, bool, Vec<u8>, Fes, u32);

/// PDUs that say wrong things about their own shape.
fn misshapen() -> Vec<Violation> {
    let none = digests(0);
    let h2c = pdu(H2cData::new(0, 0, 0, 4, true).as_bytes(), &[0; 4], none);
    let command = CapsuleCmd::new(SubmissionEntry::default(), 0);
    let command = pdu(command.as_bytes(), &[], none);
    let all = data(CID, 0, WHOLE, LAST);
    let unknown = vec![8, 0, 24, 0, 24, 0, 0, 0];
    vec![
        ("unknown type", READ, unknown, FIELD, 0),
        ("a host's data", READ, h2c, FIELD, 0),
        ("a host's command", READ, command, FIELD, 0),
        ("HLEN", READ, with(response(CID), 2, 16), FIELD, 2),
        ("HDGSTF", READ, with(response(CID), 1, 1), FIELD, 1),
        ("DDGSTF", READ, with(all.clone(), 1, LAST | 2), FIELD, 1),
        ("PLEN too small", READ, with(response(CID), 4, 23), FIELD, 4),
        ("PLEN too large", READ, with(response(CID), 7, 1), FIELD, 4),
        (
            "PLEN of R2T",
            WRITE,
            with(r2t(CID, 0, 512), 4, 28),
            FIELD,
            4,
        ),
        ("PDO too small", READ, with(all.clone(), 3, 20), FIELD, 3),
        ("PDO unaligned", READ, with(all.clone(), 3, 26), FIELD, 3),
        ("no data", READ, data(CID, 0, 0, LAST), FIELD, 3),
        ("DATAL", READ, with(all, 17, 2), FIELD, 16),
    ]
}

/// PDUs that are good in themselves, and not for the commands in flight.
fn misplaced() -> Vec<Violation> {
    let again = IcResp::new(0, 0, 8192).as_bytes().to_vec();
    let half = data(CID, 0, 512, 0);
    let early = data(CID, 0, 512, SUCCESS);
    let twice = [half.clone(), half.clone()].concat();
    let asked_twice = [r2t(CID, 0, 1024), r2t(CID, 0, 4)].concat();
    let five = (0..5).flat_map(|n| r2t(CID, n * 4, 4)).collect();
    let next = data(CID + 1, 0, WHOLE, LAST);
    let wraps = data(CID, u32::MAX - 3, 8, LAST);
    vec![
        ("second ICResp", READ, again, ORDER, 0),
        ("data for nobody", READ, next, FIELD, 8),
        (
            "data for the last command",
            READ,
            data(0, 0, WHOLE, LAST),
            FIELD,
            8,
        ),
        (
            "data beyond the end",
            READ,
            data(CID, 1020, 8, LAST),
            RANGE,
            12,
        ),
        ("data that wraps", READ, wraps, RANGE, 12),
        (
            "too much data",
            READ,
            data(CID, 0, WHOLE + 4, LAST),
            RANGE,
            12,
        ),
        (
            "data out of order",
            READ,
            data(CID, 512, 512, LAST),
            RANGE,
            12,
        ),
        ("data twice", READ, twice, RANGE, 12),
        ("SUCCESS before the last", READ, early, FIELD, 1),
        ("data for a write", WRITE, half, ORDER, 0),
        ("R2T for a read", READ, r2t(CID, 0, 512), ORDER, 0),
        ("R2T for nobody", WRITE, r2t(CID + 1, 0, 512), FIELD, 8),
        ("R2T for nothing", WRITE, r2t(CID, 0, 0), RANGE, 12),
        ("R2T beyond the end", WRITE, r2t(CID, 512, 516), RANGE, 12),
        ("R2T that wraps", WRITE, r2t(CID, u32::MAX, 2), RANGE, 12),
        ("R2T for the same twice", WRITE, asked_twice, RANGE, 16),
        (
            "more R2Ts than asked for",
            WRITE,
            five,
            Fes::LimitExceeded,
            0,
        ),
        ("response for nobody", READ, response(CID + 1), ORDER, 0),
        ("response for the last command", READ, response(0), ORDER, 0),
        ("response to FFFFh", READ, response(u16::MAX), ORDER, 0),
    ]
}

#[test]
fn each_violation_is_answered_with_its_fatal_error_status() {
    for (name, write, bytes, fes, fei) in misshapen().into_iter().chain(misplaced()) {
        let mut case = Case::new(1, digests(0));
        match case.outcome(write, &bytes) {
            Err(Error::Protocol(violation)) => {
                assert_eq!((violation.fes, violation.fei), (fes, fei), "{name}");
            }
            other => panic!("{name}: {other:?}"),
        }
        case.world.turn();
        let mut peers = case.world.target.peers.iter();
        let told = peers.find_map(|peer| peer.terminated);
        assert_eq!(told, Some((fes as u16, fei)), "{name}: it is told");
        assert_eq!(case.controller.io_queues(), 0);
        // The controller closes, and nothing is left.
        case.world.target.drop_all();
        case.world.until(|world| world.host.connections() == 0);
        let buffers = case.world.host.buffers();
        assert_eq!(buffers.free_bytes(), buffers.total_bytes(), "{name}");
    }
}

#[test]
fn a_controller_that_does_not_close_is_left_after_a_while() {
    let mut case = Case::new(2, digests(0));
    assert!(case.outcome(false, &response(99)).is_err());
    assert!(case.world.host.connections() > 0);
    case.world.until(|world| {
        // It goes on talking.
        for peer in &mut world.target.peers {
            peer.say(&[0; 100]);
        }
        world.host.connections() == 0
    });
}

#[test]
fn wrong_digests_are_noticed() {
    // Of a header: the connection ends.
    let mut case = Case::new(3, digests(3));
    let header = CapsuleResp::new(CompletionEntry::success(CID));
    let good = pdu(header.as_bytes(), &[], digests(3));
    match case.outcome(false, &with(good, 26, 0x55)) {
        Err(Error::Protocol(violation)) => {
            assert_eq!(violation.fes, Fes::HeaderDigestError);
        }
        other => panic!("{other:?}"),
    }
    // Of data: the command fails, and the connection lives on.
    for success in [0x0C, 0x04] {
        let mut case = Case::new(4, digests(3));
        let header = C2hData::new(CID, 0, 2 * BLOCK as u32, success);
        let mut bytes = pdu(header.as_bytes(), &[5; 2 * BLOCK], digests(3));
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        if success == 0x04 {
            let header = CapsuleResp::new(CompletionEntry::success(CID));
            bytes.extend(pdu(header.as_bytes(), &[], digests(3)));
        }
        assert_eq!(case.outcome(false, &bytes), Err(Error::DataDigest));
        assert_eq!(case.controller.io_queues(), 1);
    }
}

#[test]
fn less_data_than_promised_is_no_success() {
    let mut case = Case::new(5, digests(0));
    let short = Error::Short {
        received: 0,
        expected: 1024,
    };
    assert_eq!(case.outcome(false, &response(CID)), Err(short));
}

#[test]
fn an_early_completion_of_a_write_ends_it_and_its_data() {
    // An error may come while the host still owes data: the rest is not sent.
    let mut case = Case::new(6, digests(0));
    let bytes = [r2t(CID, 0, 512), response(CID)].concat();
    assert_eq!(case.outcome(true, &bytes), Ok(()));
    assert_eq!(case.controller.io_queues(), 1);
}

#[test]
fn an_ic_resp_is_checked() {
    let good = IcResp::new(0, 0, 131_072);
    let cases = [
        ("PFV", 8, 1, Fes::UnsupportedParameter, 8),
        ("CPDA", 10, 32, Fes::InvalidPduHeaderField, 10),
        ("digest unasked", 11, 1, Fes::InvalidPduHeaderField, 11),
        ("MAXH2CDATA", 14, 0, Fes::InvalidPduHeaderField, 12),
        ("another PDU", 0, 5, Fes::InvalidPduHeaderField, 2),
    ];
    for (name, at, value, fes, fei) in cases {
        let mut world = World::new(7, Manner::default());
        let (host, options) = (world.host.clone(), world.options());
        let out = world.start(async move { Controller::connect(&host, options).await.map(drop) });
        world.reactor.poll_once(world.now);
        let bytes = with(good.as_bytes().to_vec(), at, value);
        let mut streams = world.network.accepted();
        let mut scrap = [0; 4096];
        use corebay_core::net::Stream;
        let stream = &mut streams[0];
        let count = stream.receive(&mut [std::io::IoSliceMut::new(&mut scrap)]);
        assert_eq!(count.unwrap(), 128);
        stream.send(&[std::io::IoSlice::new(&bytes)]).unwrap();
        for _ in 0..4 {
            world.now = world.now.plus(super::TURN);
            world.reactor.poll_once(world.now);
        }
        match out.take() {
            Some(Err(Error::Protocol(violation))) => {
                assert_eq!((violation.fes, violation.fei), (fes, fei), "{name}");
            }
            other => panic!("{name}: {other:?}"),
        }
    }
}

/// Many commands of all kinds, while the controller says what it likes.
fn survive(seed: u64, asked: u8, say: impl Fn(&mut Rng) -> Vec<u8>) {
    let mut case = Case::new(seed, digests(asked));
    let mut outs = Vec::new();
    for task in 0..12u32 {
        let queue = case.queue.clone();
        let buffer = case.world.buffer(64 * BLOCK);
        outs.push(case.world.start(async move {
            let blocks = 1 + task * 5;
            let data = [buffer.slice(0..blocks as usize * BLOCK)];
            if task % 2 == 0 {
                queue.read(1, 0, blocks, &data).await
            } else {
                queue.write(1, 0, blocks, &data, false).await
            }
        }));
    }
    let mut rng = Rng::from_seed(seed);
    for _ in 0..20 {
        for _ in 0..3 {
            case.world.turn();
        }
        let bytes = say(&mut rng);
        if let Some(peer) = case.world.target.peers.get_mut(1) {
            peer.say(&bytes);
        }
    }
    case.world.target.drop_all();
    case.world
        .until(|_| outs.iter().all(|out| out.borrow().is_some()));
    case.world.until(|world| world.host.connections() == 0);
    let buffers = case.world.host.buffers();
    assert_eq!(buffers.free_bytes(), buffers.total_bytes());
}

/// A PDU that a controller could send, for a command that may be there.
fn plausible(rng: &mut Rng) -> Vec<u8> {
    let cid = (rng.below(8) + 8 * rng.below(3)) as u16;
    let offset = rng.below(8) as u32 * 512;
    let bytes = 512 * (1 + rng.below(8)) as usize;
    match rng.below(4) {
        0 => response(cid),
        1 => r2t(cid, offset, bytes as u32),
        2 => data(cid, 0, bytes, 4),
        _ => data(cid, offset, bytes, 0x0C),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_bytes_make_it_panic_or_hang(seed: u64, asked in 0u8..4) {
        survive(seed, asked, |rng| {
            let mut bytes = vec![0; rng.below(200) as usize];
            rng.fill(&mut bytes);
            bytes
        });
    }

    #[test]
    fn no_mutated_pdus_make_it_panic_or_hang(seed: u64, mutations in 0usize..3) {
        survive(seed, 0, |rng| {
            let mut bytes = plausible(rng);
            for _ in 0..mutations {
                let at = rng.below(bytes.len().min(24) as u64) as usize;
                bytes[at] = rng.next_u64() as u8;
            }
            bytes
        });
    }
}
