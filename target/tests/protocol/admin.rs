//! Identify and the log pages by the specification's own byte offsets, and features.

use crate::harness::{
    host::{Association, Host, assert_status, pattern},
    wire::Payload,
    world::{Plan, SUBSYSTEM, WALL_CLOCK_MS, World, faulty, identity, null, ram},
};
use corebay_core::{
    disk::{
        DiskError,
        fault::{Effect, Operation, Rule},
    },
    units::BlockSize,
};
use corebay_nvme::spec::{
    command::{
        Fuse, SubmissionEntry, admin,
        nvm::{self, CopyRangeFormat0, DsmRange},
    },
    sgl::SglDescriptor,
    status::Status,
};
use zerocopy::IntoBytes;

/// `bytes` bytes at `at`, as a number.
pub fn field(page: &[u8], at: usize, bytes: usize) -> u64 {
    (0..bytes).map(|n| u64::from(page[at + n]) << (8 * n)).sum()
}

fn world() -> std::rc::Rc<World> {
    World::new(Plan {
        media: vec![
            ram(BlockSize::B4096, 1000),
            ram(BlockSize::B512, 8000),
            faulty(BlockSize::B4096, 64),
        ],
        read_only: vec![2],
        ..Plan::default()
    })
}

#[test]
fn identify_controller() {
    let world = world();
    let mut association = Host::new(&world, 1).associate();
    let page = association.identify(1, 0).ok();
    assert_eq!(page.len(), 4096);
    assert_eq!(page[4..24], *b"CB0001              ");
    assert_eq!(page[24..36], *b"corebay test");
    assert_eq!(page[76], 0b1011, "CMIC: ports, controllers, ANA");
    assert_eq!(page[77], 8, "MDTS: 1 MiB");
    assert_eq!(field(&page, 78, 2), u64::from(association.cntlid), "CNTLID");
    assert_eq!(field(&page, 80, 4), 0x0002_0100, "VER");
    assert_eq!(field(&page, 92, 4), 1 << 8 | 1 << 11, "OAES");
    assert_eq!(
        field(&page, 96, 4),
        1 | 1 << 6,
        "CTRATT: 128-bit HOSTID, TBKAS"
    );
    assert_eq!(page[111], 1, "CNTRLTYPE: I/O");
    assert_eq!(field(&page, 256, 2), 0, "OACS");
    assert_eq!((page[258], page[259]), (7, 3), "ACL, AERL");
    assert_eq!(page[262], 63, "ELPE");
    assert_eq!(
        field(&page, 280, 8),
        1000 * 4096 + 8000 * 512 + 64 * 4096,
        "TNVMCAP"
    );
    assert_eq!(field(&page, 320, 2), 1, "KAS: 100 ms");
    assert_eq!((page[512], page[513]), (0x66, 0x44), "SQES, CQES");
    assert_eq!(field(&page, 514, 2), 1024, "MAXCMD");
    assert_eq!(field(&page, 516, 4), 1024, "NN");
    assert_eq!(field(&page, 520, 2), 0b1_1101_1111, "ONCS");
    assert_eq!(field(&page, 522, 2), 1, "FUSES");
    assert_eq!(page[525], 0b110, "VWC: no cache, flush of all namespaces");
    assert_eq!(field(&page, 526, 2), 0, "AWUN");
    assert_eq!(field(&page, 528, 2), 0, "AWUPF");
    assert_eq!(field(&page, 532, 2), 0, "ACWU: one block");
    assert_eq!(field(&page, 534, 2), 1, "CDFS: format 0");
    assert_eq!(field(&page, 536, 4) & 0b11, 1, "SGLS: supported");
    assert_eq!(field(&page, 540, 4), 1024, "MNAN");
    assert!(page[768..].starts_with(SUBSYSTEM.as_bytes()));
    assert!(page[768 + SUBSYSTEM.len()..1024].iter().all(|&b| b == 0));
    assert_eq!(field(&page, 1792, 4), (64 + 8192) / 16, "IOCCSZ");
    assert_eq!(field(&page, 1796, 4), 1, "IORCSZ");
    assert_eq!(field(&page, 1800, 2), 0, "ICDOFF");
    assert_eq!((page[1802], page[1803]), (0, 1), "FCATT: dynamic; MSDBD");
    assert_eq!(field(&page, 1804, 2), 1, "OFCS: Disconnect");
}

#[test]
fn identify_namespaces() {
    let world = world();
    let mut association = Host::new(&world, 1).associate();
    let lists: Vec<Vec<u8>> = [(2, 0), (2, 1), (2, 3), (0x10, 0)]
        .map(|(cns, after)| association.identify(cns, after).ok())
        .into();
    assert_eq!(
        [
            field(&lists[0], 0, 4),
            field(&lists[0], 4, 4),
            field(&lists[0], 8, 4),
            field(&lists[0], 12, 4)
        ],
        [1, 2, 3, 0]
    );
    assert_eq!(
        [
            field(&lists[1], 0, 4),
            field(&lists[1], 4, 4),
            field(&lists[1], 8, 4)
        ],
        [2, 3, 0]
    );
    assert!(lists[2].iter().all(|&b| b == 0));
    assert_eq!(lists[3], lists[0]);
    for (nsid, blocks, lbads) in [(1u32, 1000u64, 12u8), (2, 8000, 9)] {
        for cns in [0, 0x11] {
            let page = association.identify(cns, nsid).ok();
            let sizes = [field(&page, 0, 8), field(&page, 8, 8), field(&page, 16, 8)];
            assert_eq!(sizes, [blocks; 3], "NSZE, NCAP, NUSE");
            assert_eq!((page[25], page[26]), (0, 0), "NLBAF, FLBAS");
            assert_eq!(page[30], 1, "NMIC: shared");
            assert_eq!(page[33], 0b1001, "DLFEAT: zeroes, DEAC");
            assert_eq!(field(&page, 48, 8), blocks << lbads, "NVMCAP");
            assert_eq!(field(&page, 74, 2), 65_535, "MSSRL");
            assert_eq!(field(&page, 76, 4), 1 << 20, "MCL");
            assert_eq!(page[80], 127, "MSRC");
            assert_eq!(field(&page, 92, 4), 1, "ANAGRPID");
            assert_eq!(page[99], u8::from(nsid == 2), "NSATTR: write protected");
            assert_eq!(page[104..120], identity(nsid).nguid);
            assert_eq!(page[120..128], identity(nsid).eui64);
            assert_eq!(page[128..132], [0, 0, lbads, 0], "LBAF0");
        }
    }
}

#[test]
fn identify_names_and_lists() {
    let world = world();
    let mut association = Host::new(&world, 1).associate();
    let names = association.identify(3, 1).ok();
    let mut expected = vec![1, 8, 0, 0];
    expected.extend(identity(1).eui64);
    expected.extend([2, 16, 0, 0]);
    expected.extend(identity(1).nguid);
    expected.extend([3, 16, 0, 0]);
    expected.extend(identity(1).uuid);
    expected.extend([4, 1, 0, 0, 0]);
    assert!(names.starts_with(&expected));
    assert!(names[expected.len()..].iter().all(|&b| b == 0));
    let independent = association.identify(8, 2).ok();
    assert_eq!(
        (independent[1], field(&independent, 4, 4)),
        (1, 1),
        "NMIC, ANAGRPID"
    );
    assert_eq!(
        (independent[8], independent[14] & 1),
        (1, 1),
        "NSATTR, NSTAT"
    );
    for cns in [5, 6] {
        association.identify(cns, 1).ok();
    }
    for cns in [0, 8, 0x11] {
        let inactive = association.identify(cns, 9).ok();
        assert!(
            inactive.iter().all(|&b| b == 0),
            "an inactive namespace is all zeroes"
        );
    }
    let sets = association.identify(0x1c, 0).ok();
    assert_eq!(field(&sets, 0, 8), 1, "the NVM command set alone");
    let other = Host::new(&world, 2).associate();
    for (cns, nsid) in [(0x12, 1), (0x13, 0)] {
        let list = association.identify(cns, nsid).ok();
        let ids = [field(&list, 0, 2), field(&list, 2, 2), field(&list, 4, 2)];
        assert_eq!(
            ids,
            [2, u64::from(association.cntlid), u64::from(other.cntlid)]
        );
    }
}

#[test]
fn what_identify_refuses() {
    let world = world();
    let mut association = Host::new(&world, 1).associate();
    for (cns, nsid, status) in [
        (0, 0, Status::INVALID_NAMESPACE_OR_FORMAT),
        (0, u32::MAX, Status::INVALID_NAMESPACE_OR_FORMAT),
        (0, 1025, Status::INVALID_NAMESPACE_OR_FORMAT),
        (3, 0, Status::INVALID_NAMESPACE_OR_FORMAT),
        (3, 9, Status::INVALID_NAMESPACE_OR_FORMAT),
        (2, u32::MAX, Status::INVALID_NAMESPACE_OR_FORMAT),
        (2, u32::MAX - 1, Status::INVALID_NAMESPACE_OR_FORMAT),
        (0x20, 1, Status::INVALID_FIELD),
        (0xff, 0, Status::INVALID_FIELD),
    ] {
        assert_status(&association.identify(cns, nsid), status);
    }
    let sqe = admin::identify(5, 1, 2);
    let done = association.admin.command(sqe, Payload::ToHost(4096));
    assert!(!done.status.is_success(), "a command set that is not here");
    let short = association
        .admin
        .command(admin::identify(1, 0, 0), Payload::ToHost(4095));
    assert_status(&short, Status::DATA_SGL_LENGTH_INVALID);
    for opcode in [0x00, 0x01, 0x04, 0x05, 0x0d, 0x10, 0x14, 0x80, 0x84, 0xff] {
        let done = association
            .admin
            .command(SubmissionEntry::new(opcode, 0), Payload::None);
        assert_eq!(done.status, Status::INVALID_OPCODE.with_dnr());
    }
}

#[test]
fn log_pages() {
    let world = world();
    let (mut association, mut io) = Host::new(&world, 1).with_queue(32);
    let supported = association.log(0, 0, 1024).ok();
    let pages: Vec<_> = (0..256).filter(|n| supported[n * 4] & 1 != 0).collect();
    assert_eq!(pages, [0, 1, 2, 3, 4, 5, 0x0c, 0x12]);
    for lid in 0..=255 {
        let done = association.log(lid, 0, 16);
        assert_eq!(
            done.status.is_success(),
            pages.contains(&usize::from(lid)),
            "{lid:02x}h"
        );
    }
    // From any offset comes the rest, and zeroes behind the end.
    for lid in [0u8, 3, 5, 0x0c, 0x12] {
        let whole = association.log(lid, 0, 4096).ok();
        for offset in [4usize, 40, 512, 1020] {
            let part = association.log(lid, offset as u64, 64);
            if part.status.is_success() {
                assert_eq!(
                    part.data,
                    whole[offset..offset + 64],
                    "{lid:02x}h from {offset}"
                );
            } else {
                assert_status(&part, Status::INVALID_FIELD);
                assert!(whole[offset..].iter().all(|&b| b == 0), "beyond the end");
            }
        }
        assert_status(&association.log(lid, 2, 64), Status::INVALID_FIELD);
        assert_status(&association.log(lid, 1 << 40, 64), Status::INVALID_FIELD);
    }
    let mut by_index = admin::get_log_page(5, u32::MAX, 0, 16, false);
    by_index.cdw14.set(1 << 23);
    assert_status(
        &association.admin.command(by_index, Payload::ToHost(64)),
        Status::INVALID_FIELD,
    );
    let firmware = association.log(3, 0, 512).ok();
    assert_eq!(firmware[0], 1, "AFI");
    assert!(firmware[8..].starts_with(env!("CARGO_PKG_VERSION").as_bytes()));
    let effects = association.log(5, 0, 4096).ok();
    let io_commands: Vec<_> = (0..256)
        .filter(|n| effects[1024 + n * 4] & 1 != 0)
        .collect();
    assert_eq!(io_commands, [0, 1, 2, 4, 5, 8, 9, 0x0c, 0x19]);
    assert_eq!(effects[1024 + 4] & 2, 2, "a write changes blocks");
    assert_eq!(effects[1024 + 8] & 2, 0, "a read does not");
    let ana = association.log(0x0c, 0, 64).ok();
    assert_eq!(field(&ana, 8, 2), 1, "one group");
    assert_eq!(
        (field(&ana, 16, 4), field(&ana, 20, 4)),
        (1, 3),
        "its id, its namespaces"
    );
    assert_eq!(ana[32] & 0xf, 1, "optimized");
    assert_eq!(
        [field(&ana, 48, 4), field(&ana, 52, 4), field(&ana, 56, 4)],
        [1, 2, 3]
    );
    io.read(1, 0, 4096, 1).ok();
}

#[test]
fn health_and_errors_are_counted() {
    let world = world();
    let (mut association, mut io) = Host::new(&world, 1).with_queue(32);
    let block = pattern(1, 4096);
    for _ in 0..3 {
        io.write(1, 0, 4096, &block).ok();
    }
    io.write(1, 0, 4096, &pattern(2, 1 << 20)).ok();
    for _ in 0..5 {
        io.read(1, 0, 4096, 1).ok();
    }
    world.faults().add(
        Rule::new(Effect::Fail(DiskError::UnrecoveredRead))
            .on(Operation::Read)
            .times(1),
    );
    let failed = io.submit(nvm::read(3, 7, 1), Payload::ToHost(4096));
    assert!(!io.complete(failed).status.is_success());
    let smart = association.log(2, 0, 512).ok();
    assert_eq!(
        (smart[0], smart[3], smart[4]),
        (0, 100, 10),
        "no warning, spare, threshold"
    );
    assert_eq!(
        field(&smart, 32, 8),
        1,
        "data units read, in thousands of 512 bytes"
    );
    assert_eq!(field(&smart, 48, 8), 3, "data units written");
    assert_eq!(field(&smart, 64, 8), 6, "reads");
    assert_eq!(field(&smart, 80, 8), 4, "writes");
    assert_eq!(field(&smart, 160, 8), 1, "media errors");
    assert_eq!(field(&smart, 176, 8), 1, "error log entries");
    let per_namespace = admin::get_log_page(2, 1, 0, 128, false);
    assert_status(
        &association
            .admin
            .command(per_namespace, Payload::ToHost(512)),
        Status::INVALID_FIELD,
    );
    let errors = association.log(1, 0, 128).ok();
    assert_eq!(
        field(&errors, 0, 8),
        2,
        "the newest first: the health log of a namespace"
    );
    let entry = &errors[64..];
    assert_eq!(field(entry, 0, 8), 1);
    assert_eq!(field(entry, 8, 2), 1, "queue");
    assert_eq!(field(entry, 10, 2), u64::from(failed), "command");
    assert_eq!(field(entry, 12, 2) >> 1 & 0x7ff, 0x281, "status");
    assert_eq!(
        (field(entry, 16, 8), field(entry, 24, 4)),
        (7, 3),
        "block, namespace"
    );
    // What a host did is remembered when it has gone.
    drop((association, io));
    world.settle();
    let smart = Host::new(&world, 2).associate().log(2, 0, 512).ok();
    assert_eq!((field(&smart, 64, 8), field(&smart, 80, 8)), (6, 4));
}

fn save(fid: u8, value: u32) -> SubmissionEntry {
    let mut sqe = admin::set_features(fid, 0, value);
    sqe.cdw10.set(sqe.cdw10.get() | 1 << 31);
    sqe
}

#[test]
fn features() {
    let mut cached = ram(BlockSize::B4096, 64);
    cached.volatile_cache = true;
    let world = World::with(vec![cached, ram(BlockSize::B4096, 64)]);
    let mut association = Host::new(&world, 1).associate();
    for (fid, default, new) in [
        (0x01u8, 0u32, 0x0302_0103u32),
        (0x04, 0xffff, 350),
        (0x05, 0, 100),
        (0x06, 1, 0),
        (0x0a, 0, 1),
        (0x0b, 0, 1 << 8),
    ] {
        assert_eq!(
            association.feature(fid, 0).value(),
            u64::from(default),
            "{fid:02x}h"
        );
        assert_eq!(
            association.feature(fid, 3).value(),
            0b101,
            "saveable and changeable"
        );
        association.set_feature(fid, new).ok();
        let values = [0, 1, 2].map(|sel| association.feature(fid, sel).value());
        assert_eq!(
            values,
            [new, default, default].map(u64::from),
            "{fid:02x}h: current, default, saved"
        );
        association
            .admin
            .command(save(fid, new), Payload::None)
            .ok();
        assert_eq!(association.feature(fid, 2).value(), u64::from(new));
        assert_eq!(association.feature(fid, 1).value(), u64::from(default));
        let mut other = Host::new(&world, 2).associate();
        assert_eq!(
            other.feature(fid, 0).value(),
            u64::from(new),
            "a new controller starts with it"
        );
    }
    assert_eq!(association.feature(0x07, 3).value(), 0b100);
    for fid in [0x02, 0x07, 0x0f] {
        let done = association.admin.command(save(fid, 0), Payload::None);
        assert_status(&done, Status::FEATURE_NOT_SAVEABLE);
    }
    for fid in [0x00, 0x03, 0x08, 0x0c, 0x10, 0x80, 0xff] {
        assert_status(&association.feature(fid, 0), Status::INVALID_FIELD);
        assert_status(&association.set_feature(fid, 0), Status::INVALID_FIELD);
    }
    for sel in 4..8 {
        assert_status(&association.feature(0x06, sel), Status::INVALID_FIELD);
    }
    let of_namespace = admin::set_features(0x06, 1, 1);
    let done = association.admin.command(of_namespace, Payload::None);
    assert_status(&done, Status::FEATURE_NOT_NAMESPACE_SPECIFIC);
}

#[test]
fn where_nothing_is_cached_there_is_no_feature_for_a_cache() {
    let world = world();
    let mut association = Host::new(&world, 1).associate();
    assert_eq!(association.identify(1, 0).ok()[525] & 1, 0, "VWC");
    for sel in 0..4 {
        assert_status(&association.feature(0x06, sel), Status::INVALID_FIELD);
    }
    for value in [0, 1] {
        assert_status(&association.set_feature(0x06, value), Status::INVALID_FIELD);
    }
    let supported = association.log(0x12, 0, 1024).ok();
    assert_eq!(field(&supported, 0x06 * 4, 4), 0);
    assert_eq!(field(&supported, 0x05 * 4, 4) & 1, 1);
}

#[test]
fn what_no_namespace_knows_is_nowhere_said_to_be_supported() {
    let world = World::with(vec![null(BlockSize::B4096, 64)]);
    let (mut association, mut io) = Host::new(&world, 1).with_queue(32);
    let oncs = field(&association.identify(1, 0).ok(), 520, 2);
    let effects = association.log(5, 0, 4096).ok();
    let listed = |opcode: usize| effects[1024 + opcode * 4] & 1 == 1;
    // Opcode and ONCS bit: Compare, Write Uncorrectable, Dataset Management, Write Zeroes, Verify,
    // Copy.
    for (opcode, bit) in [
        (0x05, 0),
        (0x04, 1),
        (0x09, 2),
        (0x08, 3),
        (0x0c, 7),
        (0x19, 8),
    ] {
        assert_eq!(listed(opcode), oncs >> bit & 1 == 1, "{opcode:02x}h");
    }
    assert!(!listed(0x04));
    let done = io.command(nvm::write_uncorrectable(1, 0, 1), Payload::None);
    assert_status(&done, Status::INVALID_OPCODE);
}

#[test]
fn every_command_that_the_medium_fails_counts() {
    let world = World::with(vec![faulty(BlockSize::B4096, 64)]);
    let (mut association, mut io) = Host::new(&world, 1).with_queue(32);
    let fail_next = |operation| {
        let effect = match operation {
            Operation::Read => DiskError::UnrecoveredRead,
            _ => DiskError::WriteFault,
        };
        let rule = Rule::new(Effect::Fail(effect)).on(operation).times(1);
        world.faults().add(rule);
    };
    let block = [0; 4096];
    let source = CopyRangeFormat0::new(1, 1);
    let source = source.as_bytes();
    let range = DsmRange::new(0, 1);
    let range = range.as_bytes();
    let commands = [
        (
            Operation::Read,
            nvm::compare(1, 0, 1),
            Payload::Capsule(&block),
        ),
        (Operation::Read, nvm::verify(1, 0, 1), Payload::None),
        (
            Operation::Read,
            nvm::copy(1, 0, 1, false),
            Payload::Capsule(source),
        ),
        (
            Operation::Write,
            nvm::copy(1, 0, 1, false),
            Payload::Capsule(source),
        ),
        (
            Operation::Deallocate,
            nvm::deallocate(1, 1),
            Payload::Capsule(range),
        ),
        (Operation::Flush, nvm::flush(1), Payload::None),
        (Operation::Flush, nvm::flush(u32::MAX), Payload::None),
        (
            Operation::WriteZeroes,
            nvm::write_zeroes(1, 0, 1, false, false),
            Payload::None,
        ),
    ];
    for ((operation, sqe, payload), count) in commands.into_iter().zip(1..) {
        fail_next(operation);
        let done = io.command(sqe, payload);
        assert!(!done.status.is_success(), "{operation:?} {:02x}h", sqe.opc);
        let smart = association.log(2, 0, 512).ok();
        assert_eq!(
            field(&smart, 160, 8),
            count,
            "{operation:?} {:02x}h",
            sqe.opc
        );
    }
    // A pair that does not compare, and data that differ, are no faults of the medium.
    fail_next(Operation::Read);
    let (first, _) = io.compare_and_write(1, 0, &block, &block);
    assert!(!first.status.is_success());
    assert_status(
        &io.command(nvm::compare(1, 0, 1), Payload::Capsule(&[1; 4096])),
        Status::COMPARE_FAILURE,
    );
    let smart = association.log(2, 0, 512).ok();
    assert_eq!(field(&smart, 160, 8), 9);
}

#[test]
fn number_of_queues() {
    let world = world();
    let mut association = Host::new(&world, 1).associate();
    assert_eq!(association.feature(0x07, 0).value(), 127 << 16 | 127);
    assert_eq!(
        association.set_feature(0x07, 999 << 16 | 999).value(),
        127 << 16 | 127
    );
    assert_eq!(
        association.set_feature(0x07, 3 << 16 | 1).value(),
        3 << 16 | 3
    );
    assert_status(
        &association.set_feature(0x07, 0xffff),
        Status::INVALID_FIELD,
    );
    assert_eq!(association.feature(0x07, 0).value(), 3 << 16 | 3);
    let queues: Vec<_> = (1..=4).map(|qid| association.io(qid, 8)).collect();
    let (_queue, refused) = association.host.try_queue(5, 8, association.cntlid);
    assert_status(&refused, Status::CONNECT_INVALID_PARAMETERS);
    assert_status(
        &association.set_feature(0x07, 1 << 16 | 1),
        Status::COMMAND_SEQUENCE_ERROR,
    );
    drop(queues);
}

#[test]
fn features_with_data() {
    let world = world();
    let mut association = Host::new(&world, 1).associate();
    let get = |association: &mut Association, fid, bytes, cdw11| {
        let sqe = admin::get_features(fid, 0, 0, cdw11);
        association.admin.command(sqe, Payload::ToHost(bytes))
    };
    let stamp = get(&mut association, 0x0e, 8, 0).ok();
    assert_eq!(field(&stamp, 0, 6), WALL_CLOCK_MS);
    let mut set = 5_000_000u64.to_le_bytes();
    set[6..].fill(0);
    let sqe = admin::set_features(0x0e, 0, 0);
    association.admin.command(sqe, Payload::Capsule(&set)).ok();
    world.advance(std::time::Duration::from_secs(2));
    let stamp = get(&mut association, 0x0e, 8, 0).ok();
    assert!((5_002_000..5_002_100).contains(&field(&stamp, 0, 6)));
    assert_eq!(stamp[6] >> 1 & 7, 1, "set by the host");
    let id = get(&mut association, 0x81, 16, 1).ok();
    assert_eq!(id, association.host.id);
    assert_status(&get(&mut association, 0x81, 16, 0), Status::INVALID_FIELD);
    let mut behavior = vec![0; 512];
    behavior[0] = 1;
    let sqe = admin::set_features(0x16, 0, 0);
    association
        .admin
        .command(sqe, Payload::Capsule(&behavior))
        .ok();
    assert_eq!(get(&mut association, 0x16, 512, 0).ok(), behavior);
    behavior[0] = 2;
    let done = association.admin.command(sqe, Payload::Capsule(&behavior));
    assert_status(&done, Status::INVALID_FIELD);
}

/// Base, section 4.1.1: PSDT of a command with data must name an SGL, and no admin command is fused.
#[test]
fn other_data_pointers_and_fused_admin_commands_are_refused() {
    let world = world();
    let (mut association, mut queue) = Host::new(&world, 1).with_queue(16);
    for (flags, status) in [
        (0x40, Status::SUCCESS),
        (0x80, Status::SUCCESS),
        (0x00, Status::INVALID_FIELD.with_dnr()),
        (0xc0, Status::INVALID_FIELD.with_dnr()),
    ] {
        let mut identify = admin::identify(1, 0, 0).with_sgl(SglDescriptor::transport(4096));
        identify.flags = flags;
        let cid = association.admin.submit_as_is(identify, &[]);
        assert_eq!(association.admin.complete(cid).status, status, "{flags:#x}");
        let mut read = nvm::read(1, 0, 1).with_sgl(SglDescriptor::transport(4096));
        read.flags = flags;
        let cid = queue.submit_as_is(read, &[]);
        assert_eq!(queue.complete(cid).status, status, "{flags:#x}");
        // Without data, the pointer means nothing.
        let mut flush = nvm::flush(1);
        flush.flags = flags;
        let cid = queue.submit_as_is(flush, &[]);
        assert_eq!(queue.complete(cid).status, Status::SUCCESS, "{flags:#x}");
    }
    for fuse in [Fuse::First, Fuse::Second] {
        let identify = admin::identify(1, 0, 0).with_fuse(fuse);
        let done = association.admin.command(identify, Payload::ToHost(4096));
        assert_eq!(done.status, Status::INVALID_FIELD.with_dnr());
    }
}
