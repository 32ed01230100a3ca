//! Owns the replay of the journal as an array is assembled.
//!
//! Of each write that may not be in place, either all parts that can be there are there, then it is
//! carried out, or some part is missing, then nothing of it is in place and it is dropped. See
//! `journal.rs` for the argument. A crash amid the replay repeats it, and comes to the same result:
//! - roles without a member were recorded as failed before, so nobody can bring back a part, or its
//!   absence, that was not considered;
//! - a part that cannot be read is made of the others and written into its slot first, so that it is
//!   there from then on.
//!
//! What lies in place may be of a later record already, and then says nothing about an earlier one. A
//! part that cannot be made without such rows is left out. Once all records are in place, what no later
//! one has changed of it is made of the rows of the others, as for a strip that is lost. A crash before
//! that leaves it out again.

use std::{collections::BTreeMap, ops::Range};

use corebay_core::{
    disk::{Disk, DiskError, Durability, Space},
    units::Lba,
};

use crate::{
    engine::{Core, Fan, Outcome, Scratch, Segments, Transfer, one},
    geometry::RECORD_HEADER_BYTES,
    journal::{RecordHeader, RecordKind, replay_from},
    read::{gather, make},
    shared::Set,
    write::crc_of,
};

/// What a replay came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Replay {
    /// Writes that were carried out.
    pub(crate) writes: usize,
    /// The next sequence.
    pub(crate) next: u64,
    /// Stripes with rows that were written in part and could not be made whole: too much of them is lost.
    pub(crate) unmade: Vec<u64>,
}

/// What the journals hold.
#[derive(Default)]
struct Found {
    headers: Vec<RecordHeader>,
    /// By slot: the roles whose header cannot be read.
    unreadable: Vec<Set>,
}

/// What a record changes.
struct Change {
    stripes: Range<u64>,
    rows: Range<u32>,
    /// None where it is not complete: nothing of it is in place then.
    roles: Set,
}

/// Which rows in place are not what they were when a record was made.
#[derive(Default)]
struct Course {
    /// All records, in their order.
    changes: Vec<Change>,
    /// How many of them have been carried out.
    done: usize,
    /// By stripe and row of one block: the roles whose part was left out, and that none has changed since.
    left_out: BTreeMap<(u64, u32), Set>,
    block: u32,
}

impl Course {
    /// The roles whose rows in place say nothing about the record that is carried out now.
    fn strange(&self, stripe: u64, rows: &Range<u32>) -> Set {
        let meets = |change: &&Change| {
            change.stripes.contains(&stripe)
                && change.rows.start < rows.end
                && rows.start < change.rows.end
        };
        let later = self.changes[self.done + 1..].iter().filter(meets);
        let later = later.map(|change| change.roles);
        let left_out = self
            .left_out
            .range((stripe, rows.start)..(stripe, rows.end));
        let left_out = left_out.map(|(_, roles)| *roles);
        later.chain(left_out).fold(Set::default(), Set::union)
    }

    /// The record has been carried out now for these roles, and left out for those.
    fn carried_out(&mut self, header: &RecordHeader, roles: Set, left_out: Set) {
        // Where it covers several stripes, it covers all of their rows.
        let (stripe, rows, last) = (header.stripe, &header.rows, header.stripes().end - 1);
        let blocks = self
            .left_out
            .range_mut((stripe, rows.start)..(last, rows.end));
        blocks.for_each(|(_, left)| *left = left.without(roles));
        if left_out.is_empty() {
            return;
        }
        for row in rows.clone().step_by(self.block as usize) {
            let left = self.left_out.entry((stripe, row)).or_default();
            *left = left.union(left_out);
        }
    }
}

/// Reads the journals and carries out what is complete.
pub(crate) async fn replay<D: Disk>(core: &Core<D>) -> Result<Replay, DiskError> {
    let shared = &core.shared;
    let found = read_headers(core).await?;
    let newest = found.headers.iter().map(|header| header.sequence).max();
    let Some(newest) = newest else {
        return Ok(Replay {
            writes: 0,
            next: 0,
            unmade: Vec::new(),
        });
    };
    let from = replay_from(shared.geometry.wish().journal_slots, &found.headers);
    let mut writes: BTreeMap<u64, Vec<&RecordHeader>> = BTreeMap::new();
    for header in &found.headers {
        if Some(header.sequence) >= from {
            writes.entry(header.sequence).or_default().push(header);
        }
    }
    let unreadable = |sequence: u64| found.unreadable[shared.ring.slot(sequence) as usize];
    let change = |(&sequence, parts): (&u64, &Vec<&RecordHeader>)| Change {
        stripes: parts[0].stripes(),
        rows: parts[0].rows.clone(),
        roles: complete(core, parts, unreadable(sequence))
            .map_or(Set::default(), |all| all.expected),
    };
    let mut course = Course {
        changes: writes.iter().map(change).collect(),
        block: shared.geometry.block_size().bytes() as u32,
        ..Course::default()
    };
    let mut count = 0;
    for (sequence, parts) in &writes {
        if replay_one(core, parts, unreadable(*sequence), &mut course).await? {
            count += 1;
        }
        course.done += 1;
    }
    let mut unmade = Vec::new();
    for ((stripe, row), roles) in &course.left_out {
        let made = make_left_out(core, *stripe, *row..row + course.block, *roles).await?;
        if !made && unmade.last() != Some(stripe) {
            // Parity may not belong to its data there. Marked until they are made to agree, also after a crash.
            core.mark(*stripe).await?;
            shared.dirty.leave(shared.dirty.region_of(*stripe));
            unmade.push(*stripe);
        }
    }
    if shared.is_volatile() {
        core.flush_members().await?;
    }
    Ok(Replay {
        writes: count,
        next: newest + 1,
        unmade,
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
            fan.transfer(core, role, at, || read).await;
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
    let (rows, stripes) = (&header.rows, header.stripes());
    let whole = 0..geometry.strip_bytes();
    let fits = match header.kind {
        RecordKind::Write => rows.len() <= geometry.unit_bytes() as usize && header.more == 0,
        RecordKind::Zero => header.more == 0 || *rows == whole,
    };
    let region = |stripe: u64| shared.dirty.region_of(stripe);
    let block = geometry.block_size().bytes() as u32;
    header.array == shared.array
        && header.epoch == shared.epoch()
        && shared.ring.slot(header.sequence) == slot
        && usize::from(header.role) == role
        && stripes.end <= geometry.stripes()
        && region(stripes.start) == region(stripes.end - 1)
        && fits
        && rows.start < rows.end
        && rows.end <= geometry.strip_bytes()
        && rows.start.is_multiple_of(block)
        && rows.end.is_multiple_of(block)
        && Set(header.participants)
            .without(Set::first(geometry.roles()))
            .is_empty()
}

/// The roles that have a part in a record which is complete.
struct Complete {
    expected: Set,
    /// Of these, the ones whose header cannot be read.
    unreadable: Set,
}

/// By its headers: nothing where one is missing.
fn complete<D: Disk>(
    core: &Core<D>,
    parts: &[&RecordHeader],
    headers_unreadable: Set,
) -> Option<Complete> {
    let first = parts[0];
    let same = |part: &&RecordHeader| {
        (part.stripes(), &part.rows, part.kind, part.participants)
            == (first.stripes(), &first.rows, first.kind, first.participants)
    };
    let expected = Set(first.participants & core.written_roles().0);
    let there: Set = parts.iter().map(|part| usize::from(part.role)).collect();
    let unreadable = headers_unreadable.without(there);
    let all = expected.without(there).without(unreadable).is_empty();
    (all && parts.iter().all(same)).then_some(Complete {
        expected,
        unreadable: Set(unreadable.0 & expected.0),
    })
}

/// Carries out a write, if none of its parts is missing.
async fn replay_one<D: Disk>(
    core: &Core<D>,
    parts: &[&RecordHeader],
    headers_unreadable: Set,
    course: &mut Course,
) -> Result<bool, DiskError> {
    let (shared, first) = (&core.shared, parts[0]);
    let geometry = shared.geometry;
    let Some(complete) = complete(core, parts, headers_unreadable) else {
        return Ok(false);
    };
    let (mut expected, mut left_out) = (complete.expected, Set::default());
    let mut scratch = Scratch::new();
    let bytes = (first.rows.end - first.rows.start) as usize;
    if first.kind == RecordKind::Write {
        let strips = std::iter::repeat_n(bytes, geometry.roles());
        let header = std::iter::once(geometry.block_size().bytes());
        core.scratch(strips.chain(header), &mut scratch).await;
        let Some(lost) = read_parts(core, parts, &scratch).await? else {
            return Ok(false);
        };
        // Whose member failed meanwhile has no part in it any more.
        expected = Set(expected.0 & core.written_roles().0);
        let unreadable = Set(complete.unreadable.union(lost).0 & expected.0);
        if !unreadable.is_empty() {
            let strange = course.strange(first.stripe, &first.rows);
            let parts = Parts {
                good: expected.without(unreadable),
                unreadable,
                strange,
            };
            if !mend(core, first, &parts, &mut scratch).await? {
                let index = |role| geometry.index_of(first.stripe, role);
                let lost: Set = unreadable.iter().map(index).collect();
                let later = core.plan(lost.union(shared.absent(first.stripe)));
                if strange.is_empty() || later.is_none() {
                    return Ok(false);
                }
                left_out = unreadable;
            }
        }
    }
    let roles = expected.without(left_out);
    core.mark_missed(first.stripe).await?;
    let at = geometry.row_lba(first.stripe, first.rows.start);
    let bytes = bytes as u64 * (1 + u64::from(first.more));
    let blocks = geometry.block_size().blocks_in(bytes);
    let mut fan = Fan::new();
    for role in roles.iter() {
        let transfer = match first.kind {
            RecordKind::Write => {
                let from = one(scratch[geometry.index_of(first.stripe, role)].clone());
                Transfer::Write(from, Durability::Durable)
            }
            RecordKind::Zero => Transfer::Zero(blocks, Space::Keep, Durability::Durable),
        };
        fan.transfer(core, role, at, || transfer).await;
    }
    let ends = fan.land(core).await;
    core.fail_all(ends.failed.union(ends.unreadable)).await?;
    core.mark_missed(first.stripe).await?;
    course.carried_out(first, roles, left_out);
    Ok(true)
}

/// Makes the row of a block on roles whose part was left out of what lies in place on the others. False where
/// more than the redundancy is lost: what lies there stays.
async fn make_left_out<D: Disk>(
    core: &Core<D>,
    stripe: u64,
    row: Range<u32>,
    roles: Set,
) -> Result<bool, DiskError> {
    let (shared, bytes) = (&core.shared, (row.end - row.start) as usize);
    let geometry = shared.geometry;
    let roles = Set(roles.0 & core.written_roles().0);
    if roles.is_empty() {
        return Ok(true);
    }
    let wanted: Set = roles
        .iter()
        .map(|role| geometry.index_of(stripe, role))
        .collect();
    let mut unreadable = wanted;
    let mut scratch = Scratch::new();
    let plan = loop {
        let Some(plan) = core.plan(unreadable.union(shared.absent(stripe))) else {
            return Ok(false);
        };
        scratch.clear();
        let lengths = std::iter::repeat_n(bytes, plan.sources().len() + roles.len());
        core.scratch(lengths, &mut scratch).await;
        let more = gather(core, stripe, &row, plan.sources(), &scratch).await;
        if more.is_empty() {
            break plan;
        }
        unreadable = unreadable.union(more);
    };
    let at = geometry.row_lba(stripe, row.start);
    for index in wanted.without(shared.absent(stripe)).iter() {
        let number = plan.lost().iter().position(|&lost| lost == index);
        let mut made = scratch.pop().expect("one for each");
        make(&plan, number.expect("it is lost"), &scratch, &mut made);
        write_durably(core, geometry.role_of(stripe, index), at, one(made)).await?;
    }
    core.mark_missed(stripe).await?;
    Ok(true)
}

/// Reads the data of parts, each into the buffer of its strip. The roles whose data cannot be read;
/// nothing where some data are not what their header says.
async fn read_parts<D: Disk>(
    core: &Core<D>,
    parts: &[&RecordHeader],
    scratch: &Scratch,
) -> Result<Option<Set>, DiskError> {
    let geometry = core.shared.geometry;
    let at = places(core, parts[0].sequence).1;
    let mut fan = Fan::new();
    for part in parts {
        let role = usize::from(part.role);
        let into = one(scratch[geometry.index_of(part.stripe, role)].clone());
        fan.transfer(core, role, at, || Transfer::Read(into)).await;
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
    Ok(Some(ends.unreadable))
}

/// The roles that have a part in a record.
struct Parts {
    good: Set,
    unreadable: Set,
    /// Roles, these or others, whose rows in place are not what they were then.
    strange: Set,
}

/// Makes the parts that cannot be read of the good ones and of what lies in place, and writes them
/// into their slots. False where that is not possible.
async fn mend<D: Disk>(
    core: &Core<D>,
    header: &RecordHeader,
    Parts {
        good,
        unreadable,
        strange,
    }: &Parts,
    scratch: &mut Scratch,
) -> Result<bool, DiskError> {
    let (shared, stripe) = (&core.shared, header.stripe);
    let geometry = shared.geometry;
    let index_of = |role: usize| geometry.index_of(stripe, role);
    let parts: Set = good.iter().map(index_of).collect();
    let mut lost: Set = unreadable.iter().map(index_of).collect();
    let strange: Set = strange.iter().map(index_of).collect();
    lost = lost.union(shared.absent(stripe).union(strange).without(parts));
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
    fan.transfer(core, role, at, || write).await;
    let ends = fan.land(core).await;
    core.fail_all(ends.failed.union(ends.unreadable)).await
}
