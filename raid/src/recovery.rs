//! Owns the replay of the journal as an array is assembled.
//!
//! Of each write that may not be in place, either all parts that can be there are there, then it is
//! carried out, or some part is missing, then nothing of it is in place and it is dropped. See
//! `journal.rs` for the argument. A crash amid the replay repeats it, and comes to the same result:
//! - roles without a member were recorded as failed before, so nobody can bring back a part, or its
//!   absence, that was not considered;
//! - a part that cannot be read is made of the others and written into its slot first, so that it is
//!   there from then on;
//! - where a later record has some of the same rows, what lies in place may be of that one, and does not
//!   tell what the part was. The others are carried out then, and its rows are made of all the rest once
//!   all records are: they belong together by then.

use std::collections::BTreeMap;

use corebay_core::{
    disk::{Disk, DiskError, Durability, Space},
    units::Lba,
};

use crate::{
    engine::{Core, Ends, Fan, Outcome, Scratch, Segments, Transfer, one},
    geometry::RECORD_HEADER_BYTES,
    journal::{RecordHeader, RecordKind, replay_from},
    read::{gather, make},
    shared::Set,
    write::crc_of,
};

/// What a replay came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Replay {
    /// Writes that were carried out.
    pub(crate) writes: usize,
    /// The next sequence.
    pub(crate) next: u64,
}

/// What the journals hold.
#[derive(Default)]
struct Found {
    headers: Vec<RecordHeader>,
    /// By slot: the roles whose header cannot be read.
    unreadable: Vec<Set>,
}

/// Reads the journals and carries out what is complete.
pub(crate) async fn replay<D: Disk>(core: &Core<D>) -> Result<Replay, DiskError> {
    let shared = &core.shared;
    let found = read_headers(core).await?;
    let newest = found.headers.iter().map(|header| header.sequence).max();
    let Some(newest) = newest else {
        return Ok(Replay { writes: 0, next: 0 });
    };
    let from = replay_from(shared.geometry.wish().journal_slots, &found.headers);
    let mut writes: BTreeMap<u64, Vec<&RecordHeader>> = BTreeMap::new();
    for header in &found.headers {
        if Some(header.sequence) >= from {
            writes.entry(header.sequence).or_default().push(header);
        }
    }
    let (mut count, mut unmade) = (0, Vec::new());
    for (sequence, parts) in &writes {
        let unreadable = found.unreadable[shared.ring.slot(*sequence) as usize];
        let first = parts[0];
        let meets = |later: &&RecordHeader| {
            let apart = later.rows.end <= first.rows.start || first.rows.end <= later.rows.start;
            later.stripe == first.stripe && !apart
        };
        let mut later = writes.range(sequence + 1..).flat_map(|(_, parts)| parts);
        let overwritten = later.any(meets);
        if let Some(left_out) = replay_one(core, parts, unreadable, overwritten).await? {
            count += 1;
            unmade.extend(left_out.iter().map(|role| (role, first)));
        }
    }
    for (role, header) in unmade {
        make_anew(core, role, header).await?;
    }
    if shared.is_volatile() {
        core.flush_members().await?;
    }
    Ok(Replay {
        writes: count,
        next: newest + 1,
    })
}

/// Where the header of a sequence's part lies, and its data.
fn places<D: Disk>(core: &Core<D>, sequence: u64) -> (Lba, Lba) {
    let geometry = &core.shared.geometry;
    let slot = core.shared.ring.slot(sequence) * geometry.slot_bytes();
    let data = geometry.journal_offset() + slot + RECORD_HEADER_BYTES;
    let block = geometry.block_size().bytes() as u64;
    (geometry.member_lba(data - block), geometry.member_lba(data))
}

async fn read_headers<D: Disk>(core: &Core<D>) -> Result<Found, DiskError> {
    let geometry = core.shared.geometry;
    let (block, roles) = (geometry.block_size().bytes(), core.written_roles());
    let mut scratch = Scratch::new();
    let bytes = geometry.roles() * block;
    core.scratch(std::iter::once(bytes), &mut scratch).await;
    let window = |role: usize| scratch[0].slice(role * block..(role + 1) * block);
    let mut found = Found::default();
    for slot in 0..u64::from(geometry.wish().journal_slots) {
        let at = places(core, slot).0;
        let mut fan = Fan::new();
        for role in roles.iter() {
            let read = Transfer::Read(one(window(role)));
            fan.add(role, core.transfer(role, at, || read).await);
        }
        let ends = fan.land(core).await;
        core.fail_all(ends.failed).await?;
        found.unreadable.push(ends.unreadable);
        for role in roles.without(ends.unreadable).without(ends.failed).iter() {
            let header = RecordHeader::decode(&window(role).bytes());
            let header = header.filter(|header| belongs(core, header, slot, role));
            found.headers.extend(header);
        }
    }
    Ok(found)
}

/// True for a record of this array and epoch that can be there.
fn belongs<D: Disk>(core: &Core<D>, header: &RecordHeader, slot: u64, role: usize) -> bool {
    let (shared, geometry) = (&core.shared, &core.shared.geometry);
    let rows = &header.rows;
    let most = match header.kind {
        RecordKind::Write => geometry.unit_bytes(),
        RecordKind::Zero => geometry.strip_bytes(),
    };
    let block = geometry.block_size().bytes() as u32;
    header.array == shared.array
        && header.epoch == shared.epoch()
        && shared.ring.slot(header.sequence) == slot
        && usize::from(header.role) == role
        && header.stripe < geometry.stripes()
        && rows.start < rows.end
        && rows.end <= geometry.strip_bytes()
        && rows.end - rows.start <= most
        && rows.start.is_multiple_of(block)
        && rows.end.is_multiple_of(block)
        && Set(header.participants)
            .without(Set::first(geometry.roles()))
            .is_empty()
}

/// Carries out a write, if none of its parts is missing; the roles whose part could not be read and was
/// left out, as that is possible only where the write was `overwritten`.
async fn replay_one<D: Disk>(
    core: &Core<D>,
    parts: &[&RecordHeader],
    headers_unreadable: Set,
    overwritten: bool,
) -> Result<Option<Set>, DiskError> {
    let (shared, first) = (&core.shared, parts[0]);
    let geometry = shared.geometry;
    let same = |part: &&RecordHeader| {
        (part.stripe, &part.rows, part.kind, part.participants)
            == (first.stripe, &first.rows, first.kind, first.participants)
    };
    if !parts.iter().all(same) {
        return Ok(None);
    }
    let out = Set::first(geometry.roles()).without(core.written_roles());
    let mut expected = Set(first.participants).without(out);
    let there: Set = parts.iter().map(|part| usize::from(part.role)).collect();
    let mut unreadable = headers_unreadable.without(there);
    if !expected.without(there).without(unreadable).is_empty() {
        return Ok(None);
    }
    let mut left_out = Set::default();
    let mut scratch = Scratch::new();
    let bytes = (first.rows.end - first.rows.start) as usize;
    if first.kind == RecordKind::Write {
        let strips = std::iter::repeat_n(bytes, geometry.roles());
        let header = std::iter::once(geometry.block_size().bytes());
        core.scratch(strips.chain(header), &mut scratch).await;
        let Some(ends) = read_parts(core, parts, &scratch).await? else {
            return Ok(None);
        };
        // Of a member that failed just now nobody misses anything, and its buffer may not be its own.
        expected = expected.without(ends.failed);
        unreadable = unreadable.union(ends.unreadable);
        let unreadable = Set(unreadable.0 & expected.0);
        let good = expected.without(unreadable);
        if overwritten && !unreadable.is_empty() {
            let index_of = |role| geometry.index_of(first.stripe, role);
            let lost: Set = unreadable.iter().map(index_of).collect();
            if core.plan(lost.union(shared.absent(first.stripe))).is_none() {
                return Ok(None);
            }
            (left_out, expected) = (unreadable, good);
        } else if !unreadable.is_empty()
            && !mend(core, first, good, unreadable, &mut scratch).await?
        {
            return Ok(None);
        }
    }
    if !shared.is_whole() {
        core.mark(first.stripe).await?;
        shared.dirty.leave(shared.dirty.region_of(first.stripe));
    }
    let at = geometry.row_lba(first.stripe, first.rows.start);
    let blocks = geometry.block_size().blocks_in(bytes as u64);
    let mut fan = Fan::new();
    for role in expected.iter() {
        let transfer = match first.kind {
            RecordKind::Write => {
                let from = one(scratch[geometry.index_of(first.stripe, role)].clone());
                Transfer::Write(from, Durability::Durable)
            }
            RecordKind::Zero => Transfer::Zero(blocks, Space::Keep, Durability::Durable),
        };
        fan.add(role, core.transfer(role, at, || transfer).await);
    }
    let ends = fan.land(core).await;
    core.fail_all(ends.failed.union(ends.unreadable)).await?;
    Ok(Some(left_out))
}

/// Makes a role's rows of those of the others, all records having been carried out. What cannot be made
/// stays as it is: more is lost there than the level bears.
async fn make_anew<D: Disk>(core: &Core<D>, role: usize, header: &RecordHeader) -> Outcome {
    let (shared, stripe) = (&core.shared, header.stripe);
    let geometry = shared.geometry;
    let own = Set::default().with(geometry.index_of(stripe, role));
    if shared.absent(stripe).meets(own) {
        return Ok(());
    }
    let bytes = (header.rows.end - header.rows.start) as usize;
    let mut lost = own;
    let mut scratch = Scratch::new();
    loop {
        lost = lost.union(shared.absent(stripe));
        let Some(plan) = core.plan(lost) else {
            return Ok(());
        };
        scratch.clear();
        let lengths = std::iter::repeat_n(bytes, plan.sources().len() + 1);
        core.scratch(lengths, &mut scratch).await;
        let more = gather(core, stripe, &header.rows, plan.sources(), &scratch).await;
        if !more.is_empty() {
            lost = lost.union(more);
            continue;
        }
        let mut plan_lost = plan.lost().iter();
        let number = plan_lost.position(|&index| own.has(index));
        let mut made = scratch.pop().expect("one more than sources");
        make(&plan, number.expect("it is lost"), &scratch, &mut made);
        let at = geometry.row_lba(stripe, header.rows.start);
        let from: Segments = std::iter::once(made).collect();
        return write_durably(core, role, at, from).await;
    }
}

/// Reads the data of parts, each into the buffer of its strip. The roles whose data cannot be read;
/// nothing where some data are not what their header says.
async fn read_parts<D: Disk>(
    core: &Core<D>,
    parts: &[&RecordHeader],
    scratch: &Scratch,
) -> Result<Option<Ends>, DiskError> {
    let geometry = core.shared.geometry;
    let at = places(core, parts[0].sequence).1;
    let mut fan = Fan::new();
    for part in parts {
        let role = usize::from(part.role);
        let into = one(scratch[geometry.index_of(part.stripe, role)].clone());
        fan.add(role, core.transfer(role, at, || Transfer::Read(into)).await);
    }
    let ends = fan.land(core).await;
    core.fail_all(ends.failed).await?;
    let lost = ends.unreadable.union(ends.failed);
    for part in parts {
        let index = geometry.index_of(part.stripe, part.role.into());
        let data = std::slice::from_ref(&scratch[index]);
        if !lost.has(part.role.into()) && crc_of(data) != part.data_crc {
            return Ok(None);
        }
    }
    Ok(Some(ends))
}

/// Makes the parts of `unreadable` roles of the good ones and of what lies in place, and writes them
/// into their slots. False where that is not possible.
async fn mend<D: Disk>(
    core: &Core<D>,
    header: &RecordHeader,
    good: Set,
    unreadable: Set,
    scratch: &mut Scratch,
) -> Result<bool, DiskError> {
    let (shared, stripe) = (&core.shared, header.stripe);
    let geometry = shared.geometry;
    let index_of = |role: usize| geometry.index_of(stripe, role);
    let parts: Set = good.iter().map(index_of).collect();
    let mut lost: Set = unreadable.iter().map(index_of).collect();
    lost = lost.union(shared.absent(stripe).without(parts));
    let plan = loop {
        let Some(plan) = core.plan(lost) else {
            return Ok(false);
        };
        let in_place: Vec<usize> = plan
            .sources()
            .iter()
            .copied()
            .filter(|&index| !parts.has(index))
            .collect();
        let into: Vec<_> = in_place
            .iter()
            .map(|&index| scratch[index].clone())
            .collect();
        let more = gather(core, stripe, &header.rows, &in_place, &into).await;
        if more.is_empty() {
            break plan;
        }
        lost = lost.union(more);
    };
    let sources: Vec<_> = plan
        .sources()
        .iter()
        .map(|&index| scratch[index].clone())
        .collect();
    let (header_at, _) = places(core, header.sequence);
    for role in unreadable.iter() {
        let index = index_of(role);
        let number = plan.lost().iter().position(|&lost| lost == index);
        make(
            &plan,
            number.expect("it is lost"),
            &sources,
            &mut scratch[index],
        );
        let mut block = scratch[geometry.roles()].clone();
        let own = RecordHeader {
            role: role as u8,
            data_crc: crc_of(std::slice::from_ref(&scratch[index])),
            ..header.clone()
        };
        own.encode(&mut block.bytes_mut());
        let from: Segments = [block, scratch[index].clone()].into_iter().collect();
        write_durably(core, role, header_at, from).await?;
    }
    Ok(true)
}

async fn write_durably<D: Disk>(core: &Core<D>, role: usize, at: Lba, from: Segments) -> Outcome {
    let mut fan = Fan::new();
    let write = Transfer::Write(from, Durability::Durable);
    fan.add(role, core.transfer(role, at, || write).await);
    let ends = fan.land(core).await;
    core.fail_all(ends.failed.union(ends.unreadable)).await
}
