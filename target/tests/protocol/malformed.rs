//! Every way in which a PDU can be wrong, and how the connection ends then (NVMe/TCP 1.1, 3.5 and
//! 3.6.2.4): the fatal error status, the information that goes with it, and the header returned.
//!
//! After each, whoever else is connected is still served, and nothing of the connection is left.

use corebay_core::net::Stream;
use corebay_nvme::spec::{
    command::nvm,
    sgl::SglDescriptor,
    tcp::{
        CapsuleCmd, CommonHeader, DGST_DATA, DGST_HEADER, FLAG_DDGST, FLAG_H2C_LAST_PDU,
        FLAG_HDGST, FatalErrorStatus as Fes, H2cData, IcReq, R2t, TermReq,
    },
};
use zerocopy::{IntoBytes, little_endian::U16, little_endian::U32};

use crate::harness::{
    host::{Host, Queue, Witness, pattern},
    wire::{Connection, Payload, Pdu, Pipe},
    world::{Plan, World},
};
use corebay_target::tcp::{DigestPolicy, TcpOptions};

/// How far the connection is when the wrong PDU comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Before {
    /// Nothing was sent.
    Nothing,
    /// The connection is set up, no queue is connected.
    SetUp,
    /// An I/O queue is connected.
    Connected,
    /// A write of 64 KiB waits for its data: the target asked for 16 KiB at a time.
    Asked,
}

/// What is expected to end the connection.
#[derive(Clone, Copy, Debug)]
enum End {
    Field(u32),
    Sequence,
    Unsupported(u32),
    OutOfRange,
    Limit,
    /// A header digest error, with the digest that was received.
    Digest,
    /// The connection is closed without a word.
    Silent,
}

struct Case {
    name: &'static str,
    before: Before,
    dgst: u8,
    make: fn(&mut Made) -> Vec<u8>,
    end: End,
}

/// What a wrong PDU is made from.
struct Made {
    queue: Queue,
    r2t: Option<R2t>,
}

impl Made {
    fn asked(&self) -> (u16, u16) {
        let r2t = self.r2t.as_ref().unwrap();
        (r2t.cccid.get(), r2t.ttag.get())
    }

    /// An H2CData PDU for the write that waits.
    fn data(&self, change: impl FnOnce(&mut H2cData), bytes: usize) -> Vec<u8> {
        let (cid, tag) = self.asked();
        let mut pdu = H2cData::new(cid, tag, 0, bytes as u32, false);
        change(&mut pdu);
        self.queue.dress(pdu.as_bytes(), &vec![0; bytes])
    }
}

fn write_capsule(data: usize) -> CapsuleCmd {
    let sgl = SglDescriptor::offset_block(0, data as u32);
    let sqe = nvm::write(1, 0, 1, false).with_cid(77).with_sgl(sgl);
    CapsuleCmd::new(sqe, data as u32)
}

fn flush_capsule() -> CapsuleCmd {
    let sqe = nvm::flush(1)
        .with_cid(78)
        .with_sgl(SglDescriptor::transport(0));
    CapsuleCmd::new(sqe, 0)
}

fn changed(
    mut capsule: CapsuleCmd,
    change: impl FnOnce(&mut CommonHeader),
    data: usize,
) -> Vec<u8> {
    change(&mut capsule.common);
    let mut bytes = capsule.as_bytes().to_vec();
    bytes.resize(bytes.len() + data, 0);
    bytes
}

fn ic(change: impl FnOnce(&mut IcReq)) -> Vec<u8> {
    let mut request = IcReq::new(0, 0, 0);
    change(&mut request);
    request.as_bytes().to_vec()
}

fn of_type(pdu_type: u8) -> Vec<u8> {
    let mut bytes = vec![pdu_type, 0, 24, 0, 24, 0, 0, 0];
    bytes.resize(24, 0);
    bytes
}

const fn case(
    name: &'static str,
    before: Before,
    end: End,
    make: fn(&mut Made) -> Vec<u8>,
) -> Case {
    Case {
        name,
        before,
        dgst: 0,
        make,
        end,
    }
}

const fn with_digests(case: Case, dgst: u8) -> Case {
    Case { dgst, ..case }
}

use Before::{Asked, Connected, Nothing, SetUp};
use End::{Digest, Field, Limit, OutOfRange, Sequence, Silent, Unsupported};

const PDU_TYPE: u32 = 0;
const FLAGS: u32 = 1;
const HLEN: u32 = 2;
const PDO: u32 = 3;
const PLEN: u32 = 4;

/// Types, sequence, and the set-up of the connection.
const SET_UP: &[Case] = &[
    case("an unknown type", Connected, Field(PDU_TYPE), |_| {
        of_type(0x42)
    }),
    case("the withdrawn type 08h", Connected, Field(PDU_TYPE), |_| {
        of_type(8)
    }),
    case("an unknown type at first", Nothing, Field(PDU_TYPE), |_| {
        of_type(0xff)
    }),
    case("ICResp from a host", Connected, Field(PDU_TYPE), |_| {
        of_type(1)
    }),
    case("C2HTermReq from a host", Connected, Field(PDU_TYPE), |_| {
        of_type(3)
    }),
    case(
        "CapsuleResp from a host",
        Connected,
        Field(PDU_TYPE),
        |_| of_type(5),
    ),
    case("C2HData from a host", Connected, Field(PDU_TYPE), |_| {
        of_type(7)
    }),
    case("R2T from a host", Connected, Field(PDU_TYPE), |_| {
        of_type(9)
    }),
    case("garbage", Nothing, Field(PDU_TYPE), |_| {
        b"GET / HTTP/1.1\r\n\r\n".to_vec()
    }),
    case("ICReq twice", SetUp, Sequence, |_| ic(|_| {})),
    case("ICReq on a connected queue", Connected, Sequence, |_| {
        ic(|_| {})
    }),
    case("a capsule before ICReq", Nothing, Sequence, |_| {
        flush_capsule().as_bytes().to_vec()
    }),
    case("data before ICReq", Nothing, Sequence, |_| {
        let mut bytes = H2cData::new(0, 0, 0, 4, true).as_bytes().to_vec();
        bytes.extend([0; 4]);
        bytes
    }),
    case(
        "a format version that is not known",
        Nothing,
        Unsupported(8),
        |_| ic(|request| request.pfv = U16::new(1)),
    ),
    case("HPDA beyond 31", Nothing, Unsupported(10), |_| {
        ic(|request| request.hpda = 32)
    }),
    case("HLEN of ICReq", Nothing, Field(HLEN), |_| {
        ic(|r| r.common.hlen = 127)
    }),
    case("PLEN of ICReq, too small", Nothing, Field(PLEN), |_| {
        ic(|r| r.common.plen = U32::new(120))
    }),
    case("PLEN of ICReq, too large", Nothing, Field(PLEN), |_| {
        ic(|r| r.common.plen = U32::new(132))
    }),
];

/// Lengths, offsets and flags of capsules.
const CAPSULES: &[Case] = &[
    case(
        "HLEN of a capsule, too small",
        Connected,
        Field(HLEN),
        |_| changed(flush_capsule(), |common| common.hlen = 64, 0),
    ),
    case(
        "HLEN of a capsule, too large",
        Connected,
        Field(HLEN),
        |_| changed(flush_capsule(), |common| common.hlen = 76, 0),
    ),
    case("HLEN of zero", Connected, Field(HLEN), |_| {
        changed(flush_capsule(), |common| common.hlen = 0, 0)
    }),
    case("PLEN below HLEN", Connected, Field(PLEN), |_| {
        changed(flush_capsule(), |common| common.plen = U32::new(71), 0)
    }),
    case("PLEN of zero", Connected, Field(PLEN), |_| {
        changed(flush_capsule(), |common| common.plen = U32::ZERO, 0)
    }),
    case("PLEN of 4 GiB", Connected, Field(PLEN), |_| {
        changed(write_capsule(4096), |common| common.plen = ALL, 0)
    }),
    case(
        "in-capsule data that are too long",
        Connected,
        Field(PLEN),
        |_| changed(write_capsule(8196), |_| {}, 0),
    ),
    case(
        "a PDO that is not a multiple of 4",
        Connected,
        Field(PDO),
        |_| changed(write_capsule(4096), |common| common.pdo = 74, 0),
    ),
    case("a PDO within the header", Connected, Field(PDO), |_| {
        changed(write_capsule(4096), |common| common.pdo = 68, 0)
    }),
    case("a PDO beyond the PDU", Connected, Field(PDO), |_| {
        changed(write_capsule(4), |common| common.pdo = 80, 0)
    }),
    case("a PDO of zero with data", Connected, Field(PDO), |_| {
        changed(write_capsule(4096), |common| common.pdo = 0, 0)
    }),
    case(
        "a header digest that was not agreed",
        Connected,
        Field(FLAGS),
        |_| changed(flush_capsule(), |common| common.flags = FLAG_HDGST, 0),
    ),
    case(
        "a data digest that was not agreed",
        Connected,
        Field(FLAGS),
        |_| changed(write_capsule(4096), |common| common.flags = FLAG_DDGST, 0),
    ),
    with_digests(
        case(
            "no header digest though it was agreed",
            Connected,
            Field(FLAGS),
            |made| {
                let mut bytes = made.queue.dress(flush_capsule().as_bytes(), &[]);
                bytes[1] = 0;
                bytes
            },
        ),
        DGST_HEADER,
    ),
    with_digests(
        case(
            "no data digest though it was agreed",
            Connected,
            Field(FLAGS),
            |_| changed(write_capsule(4096), |_| {}, 0),
        ),
        DGST_DATA,
    ),
    with_digests(
        case(
            "a PLEN without room for the header digest",
            Connected,
            Field(PLEN),
            |_| changed(flush_capsule(), |common| common.flags = FLAG_HDGST, 0),
        ),
        DGST_HEADER,
    ),
    with_digests(
        case(
            "a PLEN without room for the data digest",
            Connected,
            Field(PLEN),
            |_| changed(write_capsule(3), |common| common.flags = FLAG_DDGST, 3),
        ),
        DGST_DATA,
    ),
    with_digests(
        case("a wrong header digest", Connected, Digest, |made| {
            let mut bytes = made.queue.dress(flush_capsule().as_bytes(), &[]);
            bytes[73] ^= 0x10;
            bytes
        }),
        DGST_HEADER,
    ),
    with_digests(
        case(
            "a header that changed on its way",
            Connected,
            Digest,
            |made| {
                let mut bytes = made.queue.dress(write_capsule(4096).as_bytes(), &[0; 4096]);
                bytes[48] ^= 1;
                bytes
            },
        ),
        DGST_HEADER | DGST_DATA,
    ),
    case(
        "more commands than the queue is deep",
        Connected,
        Silent,
        |made| {
            let asked = pattern(0, 64 << 10);
            let mut bytes = Vec::new();
            for _ in 0..9 {
                let sqe = nvm::write(1, 0, 16, false);
                bytes.extend(made.queue.capsule(sqe, Payload::Asked(&asked)).1);
            }
            made.queue.answers_r2t = false;
            bytes
        },
    ),
    case("a termination by the host", Connected, Silent, |made| {
        let header = flush_capsule();
        let request = TermReq::from_host(Fes::DataTransferOutOfRange, 0, 72);
        made.queue.answers_r2t = false;
        [request.as_bytes(), header.as_bytes()].concat()
    }),
    case(
        "a termination by the host that is too long",
        Connected,
        Field(PLEN),
        |_| {
            let mut request = TermReq::from_host(Fes::DataTransferOutOfRange, 0, 128);
            request.common.plen = U32::new(153);
            request.as_bytes().to_vec()
        },
    ),
];

/// Data that were asked for, or not.
const DATA: &[Case] = &[
    case("a tag that was not given out", Asked, Field(10), |made| {
        made.data(|pdu| pdu.ttag = U16::new(pdu.ttag.get() + 1), 4096)
    }),
    case("a tag beyond all", Asked, Field(10), |made| {
        made.data(|pdu| pdu.ttag = U16::new(0xffff), 4096)
    }),
    case("data that nobody asked for", Connected, Field(10), |made| {
        let pdu = H2cData::new(0, 0, 0, 4096, true);
        made.queue.dress(pdu.as_bytes(), &[0; 4096])
    }),
    case("another command's identifier", Asked, Field(8), |made| {
        made.data(|pdu| pdu.cccid = U16::new(pdu.cccid.get() ^ 1), 4096)
    }),
    case("data out of order", Asked, OutOfRange, |made| {
        made.data(|pdu| pdu.datao = U32::new(4096), 4096)
    }),
    case("data twice", Asked, OutOfRange, |made| {
        let first = made.data(|_| {}, 4096);
        made.queue.pipe.send_all(&first);
        first
    }),
    case(
        "data beyond what was asked for",
        Asked,
        OutOfRange,
        |made| {
            let first = made.data(|_| {}, 12 << 10);
            made.queue.pipe.send_all(&first);
            made.data(|pdu| pdu.datao = U32::new(12 << 10), 8 << 10)
        },
    ),
    case(
        "data of a piece that was not asked for yet",
        Asked,
        OutOfRange,
        |made| made.data(|pdu| pdu.datao = U32::new(32 << 10), 4096),
    ),
    case("an offset of 4 GiB", Asked, OutOfRange, |made| {
        made.data(|pdu| pdu.datao = ALL, 4096)
    }),
    case("more data than MAXH2CDATA", Asked, Limit, |made| {
        made.data(|_| {}, (16 << 10) + 4)
    }),
    case("no data", Asked, Field(16), |made| made.data(|_| {}, 0)),
    case(
        "the last data before the end of what was asked for",
        Asked,
        Field(FLAGS),
        |made| made.data(|pdu| pdu.common.flags |= FLAG_H2C_LAST_PDU, 4096),
    ),
    case("DATAL beyond PLEN", Asked, Field(PLEN), |made| {
        made.data(|pdu| pdu.datal = U32::new(8192), 4096)
    }),
    case("DATAL below PLEN", Asked, Field(PLEN), |made| {
        made.data(|pdu| pdu.datal = U32::new(2048), 4096)
    }),
    case("HLEN of data", Asked, Field(HLEN), |made| {
        made.data(|pdu| pdu.common.hlen = 20, 64)
    }),
    case("PLEN of data below HLEN", Asked, Field(PLEN), |made| {
        let mut bytes = made.data(|_| {}, 4096);
        bytes[4..8].copy_from_slice(&8u32.to_le_bytes());
        bytes
    }),
    with_digests(
        case("a wrong header digest of data", Asked, Digest, |made| {
            let mut bytes = made.data(|_| {}, 4096);
            bytes[24] ^= 0x80;
            bytes
        }),
        DGST_HEADER,
    ),
];

/// All bits set.
const ALL: U32 = U32::from_bytes([0xff; 4]);

fn world() -> std::rc::Rc<World> {
    World::new(Plan {
        tcp: TcpOptions {
            h2c_data_bytes_max: 16 << 10,
            ..TcpOptions::default()
        },
        ..Plan::default()
    })
}

/// Goes through one case; `cut` is how many bytes the target receives at a time.
fn try_case(world: &std::rc::Rc<World>, case: &Case, cut: usize) {
    let mut host = Host::new(world, 1);
    host.request = IcReq::new(0, case.dgst, 0);
    host.cut = cut;
    let mut association = None;
    let queue = match case.before {
        Nothing => Connection::raw(host.pipe()),
        SetUp => host.open(),
        Connected | Asked => association.insert(host.associate()).io(1, 8),
    };
    let mut made = Made { queue, r2t: None };
    if case.before == Asked {
        made.queue.answers_r2t = false;
        let data = pattern(1, 64 << 10);
        made.queue
            .submit(nvm::write(1, 0, 16, false), Payload::Asked(&data));
        let Some(Pdu::R2t(r2t)) = made.queue.pdu() else {
            panic!("no R2T came")
        };
        assert_eq!((r2t.r2to.get(), r2t.r2tl.get()), (0, 16 << 10));
        made.r2t = Some(r2t);
    }
    let wrong = (case.make)(&mut made);
    made.queue.pipe.send_all(&wrong);
    let ended = made.queue.ends();
    let expected = match case.end {
        Silent => {
            assert_eq!(ended, None);
            return;
        }
        Field(at) => (Fes::InvalidPduHeaderField, at),
        Sequence => (Fes::PduSequenceError, 0),
        Unsupported(at) => (Fes::UnsupportedParameter, at),
        OutOfRange => (Fes::DataTransferOutOfRange, 0),
        Limit => (Fes::LimitExceeded, 0),
        Digest => {
            let hlen = usize::from(wrong[2]);
            let digest = wrong[hlen..hlen + 4].try_into().unwrap();
            (Fes::HeaderDigestError, u32::from_le_bytes(digest))
        }
    };
    let (fes, fei, header) = ended.expect("it ends with a termination request");
    assert_eq!((fes, fei), (expected.0 as u16, expected.1));
    assert!(
        header.len() >= 8 && wrong.starts_with(&header),
        "{header:x?}"
    );
}

fn try_all(cases: &[Case]) {
    let world = world();
    let mut witness = Witness::new(&world);
    for case in cases {
        for cut in [usize::MAX, 1] {
            println!("{}, {} bytes at a time", case.name, cut);
            try_case(&world, case, cut);
            witness.is_served();
            world.assert_at_rest();
            assert_eq!(world.queue_count(), 2, "only the witness is left");
        }
    }
    drop(witness);
    world.assert_deserted();
}

#[test]
fn wrong_types_sequences_and_set_ups_end_the_connection() {
    try_all(SET_UP);
}

#[test]
fn wrong_capsules_end_the_connection() {
    try_all(CAPSULES);
}

#[test]
fn wrong_data_end_the_connection() {
    try_all(DATA);
}

#[test]
fn a_digest_that_is_required_or_refused() {
    for (policy, asked, granted) in [
        (DigestPolicy::Require, 0, None),
        (DigestPolicy::Require, DGST_HEADER | DGST_DATA, Some(3)),
        (DigestPolicy::Off, DGST_HEADER | DGST_DATA, Some(0)),
        (DigestPolicy::Allow, DGST_DATA, Some(DGST_DATA)),
    ] {
        let world = World::new(Plan {
            tcp: TcpOptions {
                header_digest: policy,
                data_digest: policy,
                ..TcpOptions::default()
            },
            ..Plan::default()
        });
        let mut host = Host::new(&world, 1);
        host.request = IcReq::new(0, asked, 0);
        match granted {
            Some(granted) => {
                let queue = host.open();
                assert_eq!(
                    (queue.header_digest, queue.data_digest),
                    (granted & 1 != 0, granted & 2 != 0)
                );
                let (association, mut queue) = host.with_queue(8);
                queue.write(1, 0, 4096, &pattern(1, 16 << 10)).ok();
                assert!(queue.read(1, 0, 4096, 4).ok() == pattern(1, 16 << 10));
                drop(association);
            }
            None => {
                let mut queue = Connection::raw(host.pipe());
                queue.pipe.send_all(host.request.as_bytes());
                let (fes, fei, header) = queue.ends().unwrap();
                assert_eq!((fes, fei), (Fes::UnsupportedParameter as u16, 11));
                assert_eq!(header, host.request.as_bytes());
            }
        }
        world.assert_deserted();
    }
}

#[test]
fn a_terminated_host_that_does_not_close_is_closed() {
    let world = world();
    let host = Host::new(&world, 1);
    let (association, mut queue) = host.with_queue(8);
    queue.send(&of_type(9), &[]);
    queue.ends().unwrap();
    // The host keeps its end open, and its association ends before the target loses patience.
    drop(association);
    world.advance(std::time::Duration::from_secs(6));
    world.assert_deserted();
    let sent = queue.pipe.stream.send(&[std::io::IoSlice::new(&[0; 8])]);
    assert_eq!(sent.unwrap_err().kind(), std::io::ErrorKind::BrokenPipe);
}
