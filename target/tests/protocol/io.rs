//! The I/O commands: what each does, what it refuses and with which status.

use corebay_core::{
    disk::{
        DiskError, Durability, Space,
        fault::{Effect, Operation, Rule},
    },
    units::{BlockSize, Lba},
};
use corebay_nvme::spec::{
    command::{Fuse, SubmissionEntry, nvm},
    identify::{IdentifyControllerNvm, cns},
    sgl::{Sgl, SglDescriptor},
    status::Status,
};
use corebay_target::limits::DSM_BLOCKS_MAX;
use zerocopy::{FromBytes, IntoBytes};

use crate::harness::{
    disk::Call,
    host::{Host, assert_status, pattern},
    wire::{Completed, Payload},
    world::{Plan, World, faulty, null, ram},
};

const BLOCKS: u64 = 1024;

#[test]
fn what_is_written_is_read_with_both_block_sizes() {
    for size in [BlockSize::B512, BlockSize::B4096] {
        let world = World::with(vec![ram(size, 4096)]);
        let (association, mut queue) = Host::new(&world, 1).with_queue(16);
        let block = size.bytes();
        for (seed, blocks) in [(1, 1), (2, 2), (3, 3), (4, 16), (5, 255)] {
            let data = pattern(seed, blocks * block);
            queue.write(1, seed * 300, block, &data).ok();
            assert!(queue.read(1, seed * 300, block, blocks).ok() == data);
        }
        assert!(queue.read(1, 4000, block, 2).ok().iter().all(|&b| b == 0));
        // The largest transfer there is.
        let data = pattern(9, 1 << 20);
        queue.write(1, 0, block, &data).ok();
        assert!(queue.read(1, 0, block, data.len() / block).ok() == data);
        drop((association, queue));
        world.assert_deserted();
    }
}

/// A drive lost its power with acknowledged writes in its cache, and is there again.
#[test]
fn lost_writes_are_told_by_a_flush_once_to_each_host() {
    let mut cached = ram(BlockSize::B4096, BLOCKS);
    cached.volatile_cache = true;
    let world = World::with(vec![cached.clone(), cached]);
    let [one, other] = [1, 2].map(|n| Host::new(&world, n).with_queue(16));
    let (mut association, mut queue) = one;
    queue.command(nvm::flush(1), Payload::None).ok();
    world.subsystem.writes_may_be_lost(1);
    queue.write(1, 3, 4096, &[7; 4096]).ok();
    queue.command(nvm::flush(2), Payload::None).ok();
    let told = |done: &Completed| assert_status(done, Status::WRITE_FAULT.with_dnr());
    told(&queue.command(nvm::flush(1), Payload::None));
    queue.command(nvm::flush(1), Payload::None).ok();
    let (_association, mut queue) = other;
    told(&queue.command(nvm::flush(u32::MAX), Payload::None));
    queue.command(nvm::flush(u32::MAX), Payload::None).ok();
    // To turn the cache off is to flush it.
    world.subsystem.writes_may_be_lost(2);
    told(&association.set_feature(0x06, 0));
}

#[test]
fn fua_and_flush_reach_the_disk() {
    let mut cached = ram(BlockSize::B4096, BLOCKS);
    cached.volatile_cache = true;
    let world = World::with(vec![cached, ram(BlockSize::B4096, BLOCKS)]);
    let (mut association, mut queue) = Host::new(&world, 1).with_queue(16);
    world.note_calls();
    let data = [7; 4096];
    queue.write(1, 3, 4096, &data).ok();
    assert_eq!(world.calls(), [Call::Write(3, 1, Durability::Cached)]);
    queue
        .command(nvm::write(1, 4, 1, true), Payload::Capsule(&data))
        .ok();
    assert_eq!(world.calls(), [Call::Write(4, 1, Durability::Durable)]);
    queue.command(nvm::flush(1), Payload::None).ok();
    assert_eq!(world.calls(), [Call::Flush]);
    queue.command(nvm::flush(u32::MAX), Payload::None).ok();
    assert_eq!(world.calls(), [Call::Flush, Call::Flush], "all namespaces");
    assert_status(
        &queue.command(nvm::flush(9), Payload::None),
        Status::INVALID_FIELD,
    );
    // A disabled write cache makes every write durable.
    association.set_feature(0x06, 0).ok();
    world.calls();
    queue.write(1, 5, 4096, &data).ok();
    assert_eq!(world.calls(), [Call::Write(5, 1, Durability::Durable)]);
    // Also of commands that were under way when it was disabled.
    association.set_feature(0x06, 1).ok();
    let source = sources(&[(3, 1)]);
    let cid = queue.submit(nvm::copy(1, 6, 1, false), Payload::Asked(&source));
    association.set_feature(0x06, 0).ok();
    world.calls();
    queue.complete(cid).ok();
    let calls = world.calls();
    assert!(calls.contains(&Call::Write(6, 1, Durability::Durable)));
}

#[test]
fn zeroes_deallocation_and_uncorrectable_blocks() {
    let world = World::with(vec![ram(BlockSize::B4096, 70_000)]);
    let (_association, mut queue) = Host::new(&world, 1).with_queue(16);
    world.note_calls();
    let data = pattern(1, 8192);
    for (deac, fua, space, durability) in [
        (false, false, Space::Keep, Durability::Cached),
        (true, false, Space::Deallocate, Durability::Cached),
        (false, true, Space::Keep, Durability::Durable),
    ] {
        queue.write(1, 10, 4096, &data).ok();
        world.calls();
        queue
            .command(nvm::write_zeroes(1, 11, 1, deac, fua), Payload::None)
            .ok();
        let calls = world.calls();
        assert!(
            matches!(calls[..], [Call::WriteZeroes(11, 1, s, d)] if s == space && (d == durability || !fua))
        );
        let read = queue.read(1, 10, 4096, 2).ok();
        assert!(read[..4096] == data[..4096] && read[4096..] == [0; 4096]);
    }
    // More than one transfer is fine: nothing is transferred.
    queue
        .command(nvm::write_zeroes(1, 0, 65_536, true, false), Payload::None)
        .ok();
    queue.write(1, 20, 4096, &data).ok();
    queue
        .command(nvm::write_uncorrectable(1, 21, 1), Payload::None)
        .ok();
    queue.read(1, 20, 4096, 1).ok();
    assert_status(&queue.read(1, 20, 4096, 2), Status::UNRECOVERED_READ_ERROR);
    let verify = queue.command(nvm::verify(1, 20, 2), Payload::None);
    assert_status(&verify, Status::UNRECOVERED_READ_ERROR);
    let compare = queue.command(nvm::compare(1, 21, 1), Payload::Capsule(&data[4096..]));
    assert_status(&compare, Status::UNRECOVERED_READ_ERROR);
    queue.write(1, 21, 4096, &data[4096..]).ok();
    assert!(queue.read(1, 20, 4096, 2).ok() == data, "a write heals");
    queue.command(nvm::verify(1, 0, 65_536), Payload::None).ok();
}

fn ranges(list: &[(u64, u32)]) -> Vec<u8> {
    let ranges = list
        .iter()
        .map(|&(slba, nlb)| nvm::DsmRange::new(slba, nlb));
    ranges.flat_map(|range| range.as_bytes().to_vec()).collect()
}

#[test]
fn dataset_management() {
    let world = World::with(vec![ram(BlockSize::B4096, BLOCKS)]);
    let (_association, mut queue) = Host::new(&world, 1).with_queue(16);
    let data = pattern(1, 256 * 4096);
    queue.write(1, 0, 4096, &data).ok();
    // Every second block, in as many ranges as there may be.
    let list: Vec<_> = (0..128).flat_map(|n| [(2 * n, 1), (500, 0)]).collect();
    queue
        .command(nvm::deallocate(1, 256), Payload::Asked(&ranges(&list)))
        .ok();
    let read = queue.read(1, 0, 4096, 256).ok();
    for (index, (now, before)) in read.chunks(4096).zip(data.chunks(4096)).enumerate() {
        let zero = now.iter().all(|&b| b == 0);
        assert!(
            if index % 2 == 0 { zero } else { now == before },
            "block {index}"
        );
    }
    // One range that is wrong, and nothing is done at all.
    let before = queue.read(1, 1, 4096, 1).ok();
    let wrong = ranges(&[(1, 1), (BLOCKS, 1)]);
    let done = queue.command(nvm::deallocate(1, 2), Payload::Capsule(&wrong));
    assert_status(&done, Status::LBA_OUT_OF_RANGE);
    let wrong = ranges(&[(1, 1), (u64::MAX, u32::MAX)]);
    let done = queue.command(nvm::deallocate(1, 2), Payload::Capsule(&wrong));
    assert_status(&done, Status::LBA_OUT_OF_RANGE);
    assert!(queue.read(1, 1, 4096, 1).ok() == before);
    // A hint without the attribute changes nothing.
    let hint = nvm::dataset_management(1, 1, nvm::IDR | nvm::IDW);
    queue
        .command(hint, Payload::Capsule(&ranges(&[(1, 1)])))
        .ok();
    assert!(queue.read(1, 1, 4096, 1).ok() == before);
    // Less data than ranges.
    let done = queue.command(nvm::deallocate(1, 2), Payload::Capsule(&ranges(&[(1, 1)])));
    assert_status(&done, Status::DATA_SGL_LENGTH_INVALID);
    // More data than ranges: Linux sends room for 256 with every command. The rest is ignored.
    let room: Vec<_> = (0..256).map(|n| (2 * n + 1, 1)).collect();
    for payload in [
        Payload::Asked(&ranges(&room)),
        Payload::Capsule(&ranges(&room)),
    ] {
        queue.command(nvm::deallocate(1, 1), payload).ok();
        assert!(queue.read(1, 1, 4096, 1).ok().iter().all(|&b| b == 0));
        assert!(queue.read(1, 3, 4096, 1).ok() == data[3 * 4096..4 * 4096]);
    }
}

/// However large what a host deallocates at once may be, it is told and kept.
#[test]
fn dataset_management_is_bounded() {
    let most = DSM_BLOCKS_MAX;
    let world = World::with(vec![ram(BlockSize::B4096, 2 * u64::from(most))]);
    let (mut association, mut queue) = Host::new(&world, 1).with_queue(16);
    let said = association.identify(cns::CSI_CONTROLLER, 0).ok();
    let said = IdentifyControllerNvm::read_from_bytes(&said).unwrap();
    assert_eq!((said.dmrsl.get(), said.dmsl.get()), (most, most.into()));
    queue.write(1, 0, 4096, &[1; 4096]).ok();
    let mut deallocate = |list: &[(u64, u32)]| {
        let command = nvm::deallocate(1, list.len());
        queue.command(command, Payload::Capsule(&ranges(list)))
    };
    for more in [&[(0, most + 1)][..], &[(1, most), (0, 1)]] {
        assert_status(&deallocate(more), Status::COMMAND_SIZE_LIMIT_EXCEEDED);
    }
    deallocate(&[(1, most)]).ok();
    assert!(queue.read(1, 0, 4096, 1).ok() == [1; 4096]);
}

fn sources(list: &[(u64, u32)]) -> Vec<u8> {
    let ranges = list
        .iter()
        .map(|&(slba, blocks)| nvm::CopyRangeFormat0::new(slba, blocks));
    ranges.flat_map(|range| range.as_bytes().to_vec()).collect()
}

#[test]
fn copy() {
    let world = World::with(vec![ram(BlockSize::B4096, 200_000)]);
    let (_association, mut queue) = Host::new(&world, 1).with_queue(16);
    let data = pattern(1, 100 * 4096);
    queue.write(1, 0, 4096, &data).ok();
    let list = [(50, 10), (0, 1), (90, 10), (3, 50)];
    queue
        .command(
            nvm::copy(1, 1000, 4, false),
            Payload::Capsule(&sources(&list)),
        )
        .ok();
    let expected: Vec<u8> = list
        .iter()
        .flat_map(|&(at, n)| data[at as usize * 4096..(at as usize + n as usize) * 4096].to_vec())
        .collect();
    assert!(queue.read(1, 1000, 4096, 71).ok() == expected);
    let many: Vec<_> = (0..128).map(|n| (n % 100, 1)).collect();
    queue
        .command(
            nvm::copy(1, 2000, 128, true),
            Payload::Asked(&sources(&many)),
        )
        .ok();
    assert!(queue.read(1, 2000, 4096, 100).ok() == data);

    let mut refused = |sqe: SubmissionEntry, list: &[(u64, u32)], status| {
        let done = queue.command(sqe, Payload::Asked(&sources(list)));
        assert_status(&done, status);
    };
    refused(
        nvm::copy(1, 0, 129, false),
        &[(0, 1); 129],
        Status::COMMAND_SIZE_LIMIT_EXCEEDED,
    );
    refused(
        nvm::copy(1, 0, 1, false),
        &[(0, 65_536)],
        Status::COMMAND_SIZE_LIMIT_EXCEEDED,
    );
    refused(
        nvm::copy(1, 0, 17, false),
        &[(0, 65_535); 17],
        Status::COMMAND_SIZE_LIMIT_EXCEEDED,
    );
    refused(
        nvm::copy(1, 0, 2, false),
        &[(0, 1), (199_999, 2)],
        Status::LBA_OUT_OF_RANGE,
    );
    refused(
        nvm::copy(1, 199_999, 1, false),
        &[(0, 2)],
        Status::LBA_OUT_OF_RANGE,
    );
    let mut other_format = nvm::copy(1, 0, 1, false);
    other_format.cdw12.set(other_format.cdw12.get() | 1 << 8);
    refused(other_format, &[(0, 1)], Status::INVALID_FIELD);
    // The index of the range that failed is told.
    queue
        .command(nvm::write_uncorrectable(1, 7, 1), Payload::None)
        .ok();
    let done = queue.command(
        nvm::copy(1, 3000, 3, false),
        Payload::Capsule(&sources(&[(0, 1), (1, 1), (7, 1)])),
    );
    assert_status(&done, Status::UNRECOVERED_READ_ERROR);
    assert_eq!(done.result, 2);
}

#[test]
fn compare_sees_every_byte() {
    let world = World::with(vec![ram(BlockSize::B4096, BLOCKS)]);
    let (_association, mut queue) = Host::new(&world, 1).with_queue(16);
    let data = pattern(1, 300 << 10);
    queue.write(1, 5, 4096, &data).ok();
    let compare = nvm::compare(1, 5, 75);
    queue.command(compare, Payload::Asked(&data)).ok();
    for at in [0, 1, 4095, 131_071, 131_072, data.len() - 1] {
        let mut other = data.clone();
        other[at] ^= 1;
        let done = queue.command(compare, Payload::Asked(&other));
        assert_eq!(done.status, Status::COMPARE_FAILURE.with_dnr());
    }
    queue
        .command(nvm::compare(1, 5, 1), Payload::Capsule(&data[..4096]))
        .ok();
}

#[test]
fn what_is_refused() {
    let world = World::new(Plan {
        media: vec![
            ram(BlockSize::B4096, BLOCKS),
            ram(BlockSize::B4096, BLOCKS),
            null(BlockSize::B512, 1 << 40),
        ],
        read_only: vec![2],
        ..Plan::default()
    });
    let (_association, mut queue) = Host::new(&world, 1).with_queue(16);
    let block = [1; 4096];
    let mut refused = |sqe: SubmissionEntry, payload: Payload<'_>, status: Status| {
        let done = queue.command(sqe, payload);
        assert_eq!(done.status, status.with_dnr(), "{sqe:x?}");
    };
    use Payload::{Asked, Capsule, None, ToHost};
    let out = Status::LBA_OUT_OF_RANGE;
    for lba in [BLOCKS, u64::MAX, 1 << 63] {
        refused(nvm::read(1, lba, 1), ToHost(4096), out);
        refused(nvm::write(1, lba, 1, false), Capsule(&block), out);
        refused(nvm::compare(1, lba, 1), Capsule(&block), out);
        refused(nvm::verify(1, lba, 1), None, out);
        refused(nvm::write_zeroes(1, lba, 1, false, false), None, out);
        refused(nvm::write_uncorrectable(1, lba, 1), None, out);
    }
    refused(nvm::read(1, BLOCKS - 1, 2), ToHost(8192), out);
    let long = vec![0; (1 << 20) + 512];
    refused(
        nvm::read(3, 0, 2049),
        ToHost(long.len()),
        Status::INVALID_FIELD,
    );
    refused(
        nvm::write(3, 0, 2049, false),
        Asked(&long),
        Status::INVALID_FIELD,
    );
    refused(
        nvm::compare(3, 0, 2049),
        Asked(&long),
        Status::INVALID_FIELD,
    );
    drop((_association, queue));
    world.assert_deserted();
}

#[test]
fn what_is_refused_of_other_namespaces() {
    let world = World::new(Plan {
        media: vec![
            ram(BlockSize::B4096, BLOCKS),
            ram(BlockSize::B4096, BLOCKS),
            null(BlockSize::B512, 1 << 40),
        ],
        read_only: vec![2],
        ..Plan::default()
    });
    let (_association, mut queue) = Host::new(&world, 1).with_queue(16);
    let block = [1; 4096];
    let mut refused = |sqe: SubmissionEntry, payload: Payload<'_>, status: Status| {
        let done = queue.command(sqe, payload);
        assert_eq!(done.status, status.with_dnr(), "{sqe:x?}");
    };
    use Payload::{Asked, Capsule, None, ToHost};
    for nsid in [0, 1025, u32::MAX] {
        refused(
            nvm::read(nsid, 0, 1),
            ToHost(4096),
            Status::INVALID_NAMESPACE_OR_FORMAT,
        );
    }
    for nsid in [4, 1024] {
        refused(nvm::read(nsid, 0, 1), ToHost(4096), Status::INVALID_FIELD);
        refused(
            nvm::write(nsid, 0, 1, false),
            Capsule(&block),
            Status::INVALID_FIELD,
        );
    }
    let protected = Status::NAMESPACE_WRITE_PROTECTED;
    refused(nvm::write(2, 0, 1, false), Capsule(&block), protected);
    refused(nvm::write(2, 0, 1, false), Asked(&block), protected);
    refused(nvm::write_zeroes(2, 0, 1, true, false), None, protected);
    refused(nvm::write_uncorrectable(2, 0, 1), None, protected);
    refused(
        nvm::deallocate(2, 1),
        Capsule(&ranges(&[(0, 1)])),
        protected,
    );
    refused(
        nvm::copy(2, 0, 1, false),
        Capsule(&sources(&[(0, 1)])),
        protected,
    );
    for opcode in [0x03, 0x0d, 0x0e, 0x11, 0x15, 0x18, 0x1d, 0x79, 0x80, 0xff] {
        refused(
            SubmissionEntry::new(opcode, 1),
            None,
            Status::INVALID_OPCODE,
        );
    }
    refused(
        nvm::write_uncorrectable(3, 0, 1),
        None,
        Status::INVALID_OPCODE,
    );
    queue.read(2, 0, 4096, 1).ok();
    queue.command(nvm::flush(2), None).ok();
    drop((_association, queue));
    world.assert_deserted();
}

#[test]
fn data_descriptors() {
    let world = World::with(vec![ram(BlockSize::B4096, BLOCKS)]);
    let (_association, mut queue) = Host::new(&world, 1).with_queue(16);
    let block = pattern(1, 8192);
    let write = nvm::write(1, 0, 1, false);
    let read = nvm::read(1, 0, 1);
    let mut cid = 500;
    let mut refused = |sqe: SubmissionEntry, sgl: SglDescriptor, data: &[u8], status: Status| {
        cid += 1;
        let cid = queue.submit_as_is(sqe.with_cid(cid).with_sgl(sgl), data);
        assert_eq!(
            queue.complete(cid).status,
            status.with_dnr(),
            "{:?}",
            sgl.parse()
        );
    };
    let offset = SglDescriptor::offset_block;
    let transport = SglDescriptor::transport;
    let (length, kind) = (Status::DATA_SGL_LENGTH_INVALID, Status::SGL_TYPE_INVALID);
    let data = &block[..4096];
    refused(write, offset(64, 4096), data, Status::SGL_OFFSET_INVALID);
    refused(write, offset(0, 4095), data, length);
    refused(write, offset(0, 8192), data, length);
    refused(write, offset(0, 512), &block[..512], length);
    refused(write, offset(0, 4096), &[], length);
    refused(write, transport(4096), data, kind);
    refused(write, transport(512), &[], length);
    refused(write, SglDescriptor::data_block(0, 4096), data, kind);
    refused(write, SglDescriptor::keyed(0, 4096, 1, false), &[], kind);
    for identifier in [0x10, 0x20, 0x30, 0x50, 0x5b, 0xff] {
        let sgl = SglDescriptor::from(Sgl::Unknown(identifier));
        refused(write, sgl, &[], kind);
        refused(read, sgl, &[], kind);
    }
    refused(read, transport(4095), &[], length);
    refused(read, transport(0), &[], length);
    refused(read, offset(0, 4096), data, kind);
    refused(nvm::flush(1), offset(0, 512), &block[..512], kind);
    // PRPs are for memory that both sides see.
    let mut prp = read.with_cid(900);
    prp.flags &= 0x3f;
    let cid = queue.submit_as_is(prp, &[]);
    assert_eq!(queue.complete(cid).status, Status::INVALID_FIELD.with_dnr());
    drop((_association, queue));
    world.assert_deserted();
}

#[test]
fn data_descriptors_longer_than_the_data() {
    let world = World::with(vec![ram(BlockSize::B4096, BLOCKS)]);
    let (_association, mut queue) = Host::new(&world, 1).with_queue(16);
    let block = pattern(1, 8192);
    let (write, read) = (nvm::write(1, 0, 1, false), nvm::read(1, 0, 1));
    let data = &block[..4096];
    // A descriptor that is longer than the data is fine: Identify says so in SGLS.
    queue.command(write, Payload::Capsule(&block)).ok();
    assert_eq!(queue.command(read, Payload::ToHost(8192)).ok(), data);
    let other = pattern(2, 16 << 10);
    queue.command(write, Payload::Asked(&other)).ok();
    assert_eq!(
        queue.command(read, Payload::ToHost(4096)).ok(),
        &other[..4096]
    );
    assert!(queue.read(1, 1, 4096, 1).ok().iter().all(|&b| b == 0));
    drop((_association, queue));
    world.assert_deserted();
}

#[test]
fn a_command_identifier_that_is_in_use() {
    let world = World::with(vec![faulty(BlockSize::B4096, BLOCKS)]);
    let (_association, mut queue) = Host::new(&world, 1).with_queue(16);
    world
        .faults()
        .add(Rule::new(Effect::Hang).on(Operation::Flush).times(1));
    let flush = nvm::flush(1)
        .with_cid(40)
        .with_sgl(SglDescriptor::transport(0));
    queue.submit_as_is(flush, &[]);
    world.settle();
    queue.submit_as_is(flush, &[]);
    let done = queue.complete(40);
    assert_eq!(done.status, Status::COMMAND_ID_CONFLICT.with_dnr());
    queue.expect(40);
    world.faults().release();
    assert!(
        queue.complete(40).status.is_success(),
        "the first one goes on"
    );
    queue.submit_as_is(
        nvm::flush(1)
            .with_cid(41)
            .with_sgl(SglDescriptor::transport(0)),
        &[],
    );
    assert!(queue.complete(41).status.is_success());
}

#[test]
fn disk_errors_and_their_statuses() {
    let world = World::with(vec![faulty(BlockSize::B4096, BLOCKS)]);
    let (_association, mut queue) = Host::new(&world, 1).with_queue(16);
    let block = [1; 4096];
    for (error, status) in [
        (
            DiskError::UnrecoveredRead,
            Status::UNRECOVERED_READ_ERROR.with_dnr(),
        ),
        (DiskError::WriteFault, Status::WRITE_FAULT.with_dnr()),
        (DiskError::NoSpace, Status::CAPACITY_EXCEEDED.with_dnr()),
        (DiskError::OutOfRange, Status::LBA_OUT_OF_RANGE.with_dnr()),
        (DiskError::Unsupported, Status::INVALID_OPCODE.with_dnr()),
        (DiskError::TimedOut, Status::COMMAND_INTERRUPTED),
        (DiskError::Internal(5), Status::INTERNAL_ERROR),
        (DiskError::Gone, Status::INTERNAL_ERROR.with_dnr()),
    ] {
        let list = ranges(&[(0, 1)]);
        let source = sources(&[(0, 1)]);
        world.faults().add(Rule::new(Effect::Fail(error)));
        for (sqe, payload) in [
            (nvm::read(1, 0, 1), Payload::ToHost(4096)),
            (nvm::write(1, 0, 1, false), Payload::Capsule(&block)),
            (nvm::write(1, 0, 1, false), Payload::Asked(&block)),
            (nvm::flush(1), Payload::None),
            (nvm::compare(1, 0, 1), Payload::Capsule(&block)),
            (nvm::verify(1, 0, 1), Payload::None),
            (nvm::write_zeroes(1, 0, 1, true, false), Payload::None),
            (nvm::write_uncorrectable(1, 0, 1), Payload::None),
            (nvm::deallocate(1, 1), Payload::Capsule(&list)),
            (nvm::copy(1, 9, 1, false), Payload::Capsule(&source)),
        ] {
            let done = queue.command(sqe, payload);
            assert_eq!(done.status, status, "{error} of opcode {:02x}h", sqe.opc);
        }
        world.faults().clear();
        queue.write(1, 0, 4096, &block).ok();
    }
    // Out of space: writes fail, reads and other blocks go on.
    world.faults().add(
        Rule::new(Effect::Fail(DiskError::NoSpace))
            .on(Operation::Write)
            .at(Lba(100), 10),
    );
    assert_status(
        &queue.write(1, 105, 4096, &block),
        Status::CAPACITY_EXCEEDED,
    );
    assert!(queue.read(1, 0, 4096, 1).ok() == block);
    queue.write(1, 1, 4096, &block).ok();
    drop((_association, queue));
    world.assert_deserted();
}

/// Each member that an array bears the loss of may be found out by a read: no command that reads is told.
#[test]
fn members_that_do_not_answer_one_after_the_other_are_no_affair_of_hosts() {
    let world = World::with(vec![faulty(BlockSize::B4096, BLOCKS)]);
    let (_association, mut queue) = Host::new(&world, 1).with_queue(16);
    let block = [1; 4096];
    queue.write(1, 0, 4096, &block).ok();
    let source = sources(&[(0, 1)]);
    for (sqe, payload) in [
        (nvm::read(1, 0, 1), Payload::ToHost(4096)),
        (nvm::compare(1, 0, 1), Payload::Capsule(&block)),
        (nvm::verify(1, 0, 1), Payload::None),
        (nvm::copy(1, 9, 1, false), Payload::Capsule(&source)),
    ] {
        let before = world.faults().had_effect();
        let silent = Rule::new(Effect::Fail(DiskError::TimedOut)).on(Operation::Read);
        world.faults().add(silent.times(3));
        let done = queue.command(sqe, payload);
        assert!(done.status.is_success(), "opcode {:02x}h", sqe.opc);
        assert_eq!(world.faults().had_effect() - before, 3);
        world.faults().clear();
    }
    assert!(queue.read(1, 9, 4096, 1).ok() == block);
    drop((_association, queue));
    world.assert_deserted();
}

#[test]
fn a_fuse_bit_where_it_has_no_place() {
    let world = World::with(vec![ram(BlockSize::B4096, BLOCKS)]);
    let (_association, mut queue) = Host::new(&world, 1).with_queue(16);
    let block = [0; 4096];
    for (sqe, payload) in [
        (
            nvm::read(1, 0, 1).with_fuse(Fuse::First),
            Payload::ToHost(4096),
        ),
        (
            nvm::write(1, 0, 1, false).with_fuse(Fuse::First),
            Payload::Capsule(&block),
        ),
        (
            nvm::compare(1, 0, 1).with_fuse(Fuse::Second),
            Payload::Capsule(&block),
        ),
        (nvm::flush(1).with_fuse(Fuse::Reserved), Payload::None),
    ] {
        assert_status(&queue.command(sqe, payload), Status::INVALID_FIELD);
    }
}
