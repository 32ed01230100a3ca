//! Whatever bytes and commands come, the target lives, serves the others, and leaks nothing. What
//! proptest has found once is kept in `proptest-regressions` and tried first.

use corebay_core::units::BlockSize;
use corebay_nvme::spec::{
    command::{SubmissionEntry, admin, nvm},
    fabrics::CNTLID_DYNAMIC,
    sgl::SglDescriptor,
    tcp::{CapsuleCmd, DGST_DATA, DGST_HEADER, H2cData, IcReq},
};
use proptest::{collection::vec, prelude::*, sample::select};
use zerocopy::{FromBytes, IntoBytes, little_endian::U32};

use crate::harness::{
    host::{Host, Witness, pattern},
    wire::{Connection, Payload, Pipe},
    world::{World, ram},
};

const BLOCKS: u64 = 64;

/// So many cases in an ordinary run; PROPTEST_CASES asks for more.
const CASES: u32 = 32;

fn config() -> ProptestConfig {
    let default = ProptestConfig::default();
    let asked = std::env::var_os("PROPTEST_CASES").is_some();
    ProptestConfig {
        cases: if asked { default.cases } else { CASES },
        ..default
    }
}

fn world() -> std::rc::Rc<World> {
    World::with(vec![ram(BlockSize::B4096, BLOCKS)])
}

/// Sends what is there, in pieces of `cut` bytes; the target may close at any point.
fn pour(host: &Host, bytes: &[u8], cut: usize) {
    let mut host = host.clone();
    host.cut = cut;
    let mut connection = Connection::raw(host.pipe());
    connection.pipe.send_all(bytes);
    host.world.settle();
    drop(connection);
    host.world.settle();
}

/// The bytes of a host that sets up an I/O queue and uses it, without waiting for any answer.
fn session(host: &Host, cntlid: u16, qid: u16, dgst: u8) -> Vec<u8> {
    let mut bytes = IcReq::new(0, dgst, 3).as_bytes().to_vec();
    let mut queue = Connection::raw(host.pipe());
    queue.header_digest = dgst & DGST_HEADER != 0;
    queue.data_digest = dgst & DGST_DATA != 0;
    let data = host.connect_data(cntlid);
    let block = pattern(1, 4096);
    let connect = host.connect_command(qid, 32);
    bytes.extend(queue.capsule(connect, Payload::Capsule(data.as_bytes())).1);
    for (sqe, payload) in [
        (nvm::write(1, 1, 1, false), Payload::Capsule(&block[..])),
        (nvm::read(1, 1, 1), Payload::ToHost(4096)),
        (nvm::write(1, 2, 1, false), Payload::Asked(&block)),
        (nvm::flush(1), Payload::None),
        (admin::identify(1, 0, 0), Payload::ToHost(4096)),
    ] {
        bytes.extend(queue.capsule(sqe, payload).1);
    }
    for tag in 0..4 {
        let pdu = H2cData::new(3, tag, 0, 4096, true);
        bytes.extend(queue.dress(pdu.as_bytes(), &block));
    }
    bytes
}

#[derive(Clone, Debug)]
enum Mutation {
    Set(u16, u8),
    Flip(u16, u8),
    Remove(u16, u8),
    Insert(u16, Vec<u8>),
    Truncate(u16),
    Repeat(u16, u16),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    // Most of what matters is in headers: at the front, and in each capsule's first 72 bytes.
    let at = || prop_oneof![0u16..1400, any::<u16>()];
    prop_oneof![
        (at(), any::<u8>()).prop_map(|(at, value)| Mutation::Set(at, value)),
        (at(), 0u8..8).prop_map(|(at, bit)| Mutation::Flip(at, bit)),
        (at(), 1u8..100).prop_map(|(at, count)| Mutation::Remove(at, count)),
        (at(), vec(any::<u8>(), 1..40)).prop_map(|(at, bytes)| Mutation::Insert(at, bytes)),
        at().prop_map(Mutation::Truncate),
        (at(), 1u16..500).prop_map(|(at, count)| Mutation::Repeat(at, count)),
    ]
}

fn mutate(bytes: &mut Vec<u8>, mutation: &Mutation) {
    let place = |at: u16| usize::from(at) % bytes.len().max(1);
    match mutation {
        _ if bytes.is_empty() => {}
        Mutation::Set(at, value) => {
            let at = place(*at);
            bytes[at] = *value;
        }
        Mutation::Flip(at, bit) => {
            let at = place(*at);
            bytes[at] ^= 1 << bit;
        }
        Mutation::Remove(at, count) => {
            let at = place(*at);
            let end = (at + usize::from(*count)).min(bytes.len());
            bytes.drain(at..end);
        }
        Mutation::Insert(at, new) => {
            let at = place(*at);
            bytes.splice(at..at, new.iter().copied());
        }
        Mutation::Truncate(at) => {
            let at = place(*at);
            bytes.truncate(at);
        }
        Mutation::Repeat(at, count) => {
            let at = place(*at);
            let end = (at + usize::from(*count)).min(bytes.len());
            let again = bytes[at..end].to_vec();
            bytes.splice(at..at, again);
        }
    }
}

fn cut() -> impl Strategy<Value = usize> {
    select(&[1, 3, 24, 73, 1000, usize::MAX][..])
}

/// A submission queue entry with fields that are often nearly right.
fn entry() -> impl Strategy<Value = [u8; 64]> {
    let opcode = prop_oneof![
        4 => select(&[0u8, 1, 2, 4, 5, 8, 9, 0x0c, 0x19][..]),
        1 => select(&[6u8, 0x0a, 0x18, 0x7f][..]),
        1 => any::<u8>(),
    ];
    let flags = prop_oneof![6 => Just(0x40u8), 2 => 0x40u8..0x44, 1 => any::<u8>()];
    let nsid = prop_oneof![6 => Just(1u32), 1 => select(&[0u32, 2, 1024, 1025, u32::MAX][..])];
    let lba = prop_oneof![6 => 0u64..BLOCKS + 2, 1 => any::<u64>()];
    let dword = || prop_oneof![3 => 0u32..9, 1 => select(&[255u32, 256, 65_535, 1 << 25][..]), 1 => any::<u32>()];
    (
        opcode,
        flags,
        nsid,
        lba,
        [dword(), dword(), dword(), dword()],
    )
        .prop_map(|(opcode, flags, nsid, lba, dwords)| {
            let mut bytes = [0; 64];
            bytes[0] = opcode;
            bytes[1] = flags;
            bytes[4..8].copy_from_slice(&nsid.to_le_bytes());
            bytes[40..48].copy_from_slice(&lba.to_le_bytes());
            for (index, dword) in dwords.iter().enumerate() {
                bytes[48 + index * 4..52 + index * 4].copy_from_slice(&dword.to_le_bytes());
            }
            bytes
        })
}

/// The commands that end a queue or are not answered by themselves are for other tests.
fn is_answered(sqe: &SubmissionEntry, on_admin_queue: bool) -> bool {
    let ends = sqe.opc == 0x7f && matches!(sqe.nsid.get() as u8, 0 | 8);
    let parks = on_admin_queue && sqe.opc == admin::ASYNC_EVENT_REQUEST;
    !(ends || parks)
}

#[derive(Clone, Debug)]
enum Step {
    Write(u64, u64, u64, bool),
    Zero(u64, u64, bool),
    Trim(u64, u64),
    Copy(u64, u64, u64),
    Read(u64, u64),
}

fn step() -> impl Strategy<Value = Step> {
    let at = || 0..BLOCKS;
    let count = || 1u64..9;
    prop_oneof![
        3 => (at(), count(), any::<u64>(), any::<bool>())
            .prop_map(|(at, count, seed, asked)| Step::Write(at, count, seed, asked)),
        1 => (at(), count(), any::<bool>()).prop_map(|(at, count, deac)| Step::Zero(at, count, deac)),
        1 => (at(), count()).prop_map(|(at, count)| Step::Trim(at, count)),
        1 => (at(), at(), count()).prop_map(|(from, to, count)| Step::Copy(from, to, count)),
        2 => (at(), count()).prop_map(|(at, count)| Step::Read(at, count)),
    ]
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn random_bytes(
        set_up in any::<bool>(),
        kinds in vec((select(&[0u8, 2, 4, 4, 4, 6, 6, 9][..]), any::<u8>(), vec(any::<u8>(), 0..200)), 0..6),
        cut in cut(),
    ) {
        let world = world();
        let mut witness = Witness::new(&world);
        let mut bytes = Vec::new();
        if set_up {
            bytes.extend(IcReq::new(0, 0, 0).as_bytes());
        }
        for (kind, how, noise) in kinds {
            let hlen = [128, 128, 24, 24, 72, 24, 24, 24, 24, 24][usize::from(kind)];
            let plen = (usize::from(hlen) + noise.len()) as u32;
            match how % 4 {
                0 => bytes.extend(noise),
                _ => {
                    bytes.extend([kind, how & 0x20, hlen, hlen]);
                    bytes.extend(plen.to_le_bytes());
                    let mut rest = noise.clone();
                    rest.resize(plen as usize - 8, how);
                    bytes.extend(rest);
                }
            }
        }
        pour(&Host::new(&world, 1), &bytes, cut);
        witness.is_served();
        drop(witness);
        world.assert_deserted();
    }

    #[test]
    fn mutated_sessions(
        on_admin_queue in any::<bool>(),
        dgst in 0u8..4,
        mutations in vec(mutation(), 0..4),
        cut in cut(),
    ) {
        let world = world();
        let mut witness = Witness::new(&world);
        let host = Host::new(&world, 1);
        let association = host.associate();
        let (cntlid, qid) = match on_admin_queue {
            true => (CNTLID_DYNAMIC, 0),
            false => (association.cntlid, 1),
        };
        let mut bytes = session(&host, cntlid, qid, dgst);
        for mutation in &mutations {
            mutate(&mut bytes, mutation);
        }
        pour(&host, &bytes, cut);
        witness.is_served();
        drop((association, witness));
        world.assert_deserted();
    }

    #[test]
    fn strange_commands_are_answered(
        on_admin_queue in any::<bool>(),
        commands in vec((entry(), 0u8..5, 1usize..9), 1..20),
    ) {
        let world = world();
        let mut witness = Witness::new(&world);
        let mut association = Host::new(&world, 1).associate();
        let mut io = association.io(1, 64);
        let queue = if on_admin_queue { &mut association.admin } else { &mut io };
        let data = pattern(1, 8 * 4096);
        for (bytes, how, blocks) in commands {
            let sqe = SubmissionEntry::read_from_bytes(&bytes).unwrap();
            if !is_answered(&sqe, on_admin_queue) {
                continue;
            }
            let bytes = blocks * 4096;
            let payload = match how {
                0 => Payload::None,
                1 => Payload::ToHost(bytes),
                2 => Payload::Capsule(&data[..bytes.min(8192)]),
                3 => Payload::Capsule(&data[..blocks * 16]),
                _ => Payload::Asked(&data[..bytes]),
            };
            let flags = sqe.flags;
            let (cid, mut capsule) = queue.capsule(sqe, payload);
            capsule[9] = flags;
            queue.pipe.send_all(&capsule);
            if flags & 3 == 0 || on_admin_queue {
                queue.complete(cid);
            } else {
                // A half of a fused pair is answered by what follows it.
                let flush = if on_admin_queue { admin::keep_alive() } else { nvm::flush(1) };
                queue.command(flush, Payload::None);
                queue.complete(cid);
            }
        }
        witness.is_served();
        drop((association, io, witness));
        world.assert_deserted();
    }

    #[test]
    fn a_disk_reads_as_its_model(steps in vec(step(), 1..40)) {
        let world = world();
        let (association, mut queue) = Host::new(&world, 1).with_queue(16);
        let mut model = vec![0u8; BLOCKS as usize * 4096];
        let span = |at: u64, count: u64| at as usize * 4096..(at + count) as usize * 4096;
        for step in steps {
            match step {
                Step::Write(at, count, seed, asked) => {
                    let data = pattern(seed, count as usize * 4096);
                    let payload = match asked || data.len() > 8192 {
                        true => Payload::Asked(&data[..]),
                        false => Payload::Capsule(&data),
                    };
                    let done = queue.command(nvm::write(1, at, count as u32, false), payload);
                    prop_assert_eq!(done.status.is_success(), at + count <= BLOCKS);
                    if done.status.is_success() {
                        model[span(at, count)].copy_from_slice(&data);
                    }
                }
                Step::Zero(at, count, deac) => {
                    let sqe = nvm::write_zeroes(1, at, count as u32, deac, false);
                    if queue.command(sqe, Payload::None).status.is_success() {
                        model[span(at, count)].fill(0);
                    }
                }
                Step::Trim(at, count) => {
                    let range = nvm::DsmRange::new(at, count as u32);
                    let payload = Payload::Capsule(range.as_bytes());
                    if queue.command(nvm::deallocate(1, 1), payload).status.is_success() {
                        model[span(at, count)].fill(0);
                    }
                }
                Step::Copy(from, to, count) => {
                    // An overlap is the host's own affair.
                    if from < to + count && to < from + count {
                        continue;
                    }
                    let range = nvm::CopyRangeFormat0::new(from, count as u32);
                    let payload = Payload::Capsule(range.as_bytes());
                    if queue.command(nvm::copy(1, to, 1, false), payload).status.is_success() {
                        model.copy_within(span(from, count), to as usize * 4096);
                    }
                }
                Step::Read(at, count) => {
                    let done = queue.read(1, at, 4096, count as usize);
                    prop_assert_eq!(done.status.is_success(), at + count <= BLOCKS);
                    if done.status.is_success() {
                        prop_assert!(done.data == model[span(at, count)]);
                    }
                }
            }
        }
        prop_assert!(queue.read(1, 0, 4096, BLOCKS as usize).ok() == model);
        drop((association, queue));
        world.assert_deserted();
    }
}

#[test]
fn a_length_of_every_size() {
    let world = world();
    let mut witness = Witness::new(&world);
    for plen in (0..9000u32).step_by(61).chain([u32::MAX, 1 << 31]) {
        let (association, mut queue) = Host::new(&world, 1).with_queue(8);
        let sgl = SglDescriptor::offset_block(0, plen.saturating_sub(72));
        let mut capsule = CapsuleCmd::new(nvm::write(1, 0, 1, false).with_sgl(sgl), 1);
        capsule.common.plen = U32::new(plen);
        let mut bytes = capsule.as_bytes().to_vec();
        bytes.resize(plen.min(9000) as usize, 0);
        queue.pipe.send_all(&bytes);
        world.settle();
        drop((association, queue));
        world.assert_at_rest();
    }
    witness.is_served();
}
