//! Owns writes: to stripes with parity, to mirrors, to plain stripes.
//!
//! # A write to a stripe with parity
//! With the stripe locked, so that nothing else changes it:
//! 1. Where members are missing, the region is marked: a member that returns takes it anew.
//! 2. What is needed of the old rows is read ([`choose`]), and the new parity is made. Nothing has
//!    changed; a crash leaves the old.
//! 3. Each member that changes gets its part into its journal, durably. A crash here leaves the old:
//!    recovery finds a part missing and drops the others. A member that fails is recorded as failed
//!    before the next step, or recovery would miss its part.
//! 4. Each member changes in place. A crash here leaves the new: recovery finds all parts. A member
//!    that fails is recorded as failed before the write is acknowledged, or it would be read.
//! 5. The write is acknowledged; it retires once it is durable in place.
//!
//! Without the journal, step 1 is always done and step 3 never: a crash in step 4 leaves the parity
//! wrong until the region has been made equal again. What it has torn meanwhile: `torn.rs`.
//!
//! # A write to a mirror
//! The region is marked, then all legs change. A crash leaves legs that differ within a marked region;
//! until they are equal again the region is read from one leg only.

use std::ops::Range;

use arrayvec::ArrayVec;
use corebay_core::{
    buffer::{Buffer, Bytes, BytesMut},
    disk::{Disk, DiskError, Durability, SEGMENTS_MAX, Space},
};
use crc_fast::{CrcAlgorithm, Digest};

use crate::{
    engine::{Core, Ends, Fan, Outcome, Scratch, Segments, Transfer, one, window},
    geometry::{Band, RECORD_HEADER_BYTES},
    journal::{RecordHeader, RecordKind},
    kernels::{Codec, DATA_MAX, PARITY_MAX, xor_into},
    shared::{Set, Shared},
    torn::{may_be_torn, write_torn},
};

/// What is to be written.
#[allow(
    clippy::large_enum_variant,
    reason = "it stays where it is made, and the large variant is the usual one"
)]
pub(crate) enum Payload {
    /// A host's buffers, whose first byte goes to `start` of the array.
    Host { from: Segments, start: u64 },
    /// Zeroes.
    Zeroes,
}

/// A write to one band.
pub(crate) struct Write {
    pub(crate) band: Band,
    pub(crate) payload: Payload,
    pub(crate) durability: Durability,
}

impl Write {
    /// The buffers that its data lie in.
    pub(crate) fn buffers(&self) -> usize {
        match &self.payload {
            Payload::Host { from, .. } => from.len(),
            Payload::Zeroes => 1,
        }
    }

    /// The new bytes of some rows of a strip.
    pub(crate) fn data<D: Disk>(
        &self,
        core: &Core<D>,
        strip: usize,
        rows: &Range<u32>,
    ) -> Segments {
        let bytes = (rows.end - rows.start) as usize;
        match &self.payload {
            Payload::Host { from, start } => {
                let geometry = &core.shared.geometry;
                let at = geometry.array_offset(self.band.stripe, strip, rows.start) - start;
                let at = usize::try_from(at).expect("within the transfer");
                window(from, at..at + bytes)
            }
            Payload::Zeroes => one(core.zeroes(bytes)),
        }
    }
}

/// What is written to a stripe at once: some rows of a write, or of several that go together.
pub(crate) struct Piece<'a> {
    pub(crate) stripe: u64,
    pub(crate) rows: Range<u32>,
    pub(crate) touched: Set,
    pub(crate) durability: Durability,
    from: From<'a>,
}

enum From<'a> {
    One(&'a Write),
    Party(&'a [u16]),
}

impl Piece<'_> {
    /// The new bytes of a strip.
    pub(crate) fn data<D: Disk>(&self, core: &Core<D>, strip: usize) -> Segments {
        match self.from {
            From::One(write) => write.data(core, strip, &self.rows),
            From::Party(party) => core.merges.data(core, party, strip, &self.rows),
        }
    }
}

/// What is read to make the new parity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    /// Nothing: all data are new.
    Full,
    /// Nothing: no parity is there to be written.
    DataOnly,
    /// The old rows of what changes, and of the parity.
    Modify,
    /// The rows of the data that do not change.
    Reconstruct,
    /// Whatever is there, to make the rest of it.
    Restore,
}

/// Chooses by the fewest reads, if the write is possible at all. All sets are of strips by index:
/// `touched` changes, `absent` is not there, `lost` cannot be read (also what is absent).
pub(crate) fn choose(
    data: usize,
    parity: usize,
    touched: Set,
    absent: Set,
    lost: Set,
) -> Option<Method> {
    let all = Set::first(data);
    let parities = Set::first(data + parity).without(all);
    let written = parities.without(absent);
    if absent.len() > parity {
        return None;
    }
    if touched == all {
        return Some(Method::Full);
    }
    if written.is_empty() {
        return Some(Method::DataOnly);
    }
    let modify = !touched.union(written).meets(lost);
    let reconstruct = !all.without(touched).meets(lost);
    let cheaper = touched.len() + written.len() < data - touched.len();
    match (modify, reconstruct) {
        (true, true) if cheaper => Some(Method::Modify),
        (_, true) => Some(Method::Reconstruct),
        (true, false) => Some(Method::Modify),
        (false, false) => (lost.len() <= parity).then_some(Method::Restore),
    }
}

/// Writes a band of a stripe with parity, together with those that come while it waits for the stripe.
pub(crate) async fn write_with_parity<D: Disk>(
    core: &Core<D>,
    worker: usize,
    write: Write,
) -> Outcome {
    let (stripes, stripe) = (&core.shared.stripes, write.band.stripe);
    if let Some(locked) = stripes.try_acquire(stripe) {
        let outcome = write_alone(core, &write).await;
        stripes.release(locked);
        return outcome;
    }
    if core.merges.wait(worker, write) {
        return core.merges.outcome(worker).await;
    }
    let locked = stripes.acquire(&core.parking, stripe).await;
    let party = core.merges.close(worker, stripe);
    let together = party.len() > 1 && write_party(core, &party, stripe).await.is_ok();
    let mut own = Ok(());
    for &member in &party {
        let write = core.merges.take(member);
        let outcome = match together {
            true => Ok(()),
            false => write_alone(core, &write).await,
        };
        match usize::from(member) == worker {
            true => own = outcome,
            false => core.merges.end(member, outcome),
        }
    }
    stripes.release(locked);
    own
}

/// With the stripe locked.
async fn write_party<D: Disk>(core: &Core<D>, party: &[u16], stripe: u64) -> Outcome {
    let (mut at, most) = (0, core.shared.geometry.unit_bytes());
    while let Some(slice) = core.merges.slice(party, at, most) {
        at = slice.rows.end;
        let piece = Piece {
            stripe,
            rows: slice.rows,
            touched: slice.strips,
            durability: core.merges.durability(party),
            from: From::Party(party),
        };
        write_piece(core, &piece).await?;
    }
    Ok(())
}

/// With the stripe locked.
async fn write_alone<D: Disk>(core: &Core<D>, write: &Write) -> Outcome {
    let mut piece = Piece {
        stripe: write.band.stripe,
        rows: write.band.rows.clone(),
        touched: write.band.strips.clone().collect(),
        durability: write.durability,
        from: From::One(write),
    };
    let rows = write.band.rows.clone();
    let block = core.shared.geometry.block_size().bytes() as u32;
    let mut outcome = write_piece(core, &piece).await;
    if outcome == Err(DiskError::UnrecoveredRead) && rows.end - rows.start > block {
        // Blocks of several members are lost, but maybe none in the same row.
        for row in rows.step_by(block as usize) {
            piece.rows = row..row + block;
            outcome = write_piece(core, &piece).await;
            if outcome.is_err() {
                break;
            }
        }
    }
    outcome
}

/// With the stripe locked.
async fn write_piece<D: Disk>(core: &Core<D>, piece: &Piece<'_>) -> Outcome {
    let (shared, stripe) = (&core.shared, piece.stripe);
    if shared.is_stopped() {
        return Err(DiskError::WriteFault);
    }
    let mut marked = !shared.geometry.is_journaled() || !shared.is_whole();
    if marked {
        core.mark(stripe).await?;
    }
    let mut scratch = Scratch::new();
    let mut outcome = Ok(());
    let mut absent = make_parity(core, piece, &mut scratch, &mut outcome).await;
    if outcome == Err(DiskError::UnrecoveredRead) && may_be_torn(core, piece) {
        // A read that fails once may succeed: the row's parity is not given up for that.
        outcome = Ok(());
        absent = make_parity(core, piece, &mut scratch, &mut outcome).await;
    }
    if !marked && outcome.is_ok() && !absent.is_empty() {
        // Found missing only now: who has come back before the mark was there is not told of it.
        core.mark(stripe).await?;
        marked = true;
        if shared.absent(stripe) != absent {
            absent = make_parity(core, piece, &mut scratch, &mut outcome).await;
        }
    }
    let mut changes = true;
    if outcome.is_ok() {
        outcome = put(core, piece, &scratch, absent, marked).await;
    } else if outcome == Err(DiskError::UnrecoveredRead) && may_be_torn(core, piece) {
        // On the heap: it happens after a crash alone.
        outcome = Box::pin(write_torn(core, piece)).await;
        changes = outcome != Err(DiskError::UnrecoveredRead);
    } else {
        changes = false;
    }
    // Where it failed amid its changes, the region stays marked.
    if marked && (outcome.is_ok() || !changes) {
        shared.dirty.leave(shared.dirty.region_of(stripe));
    }
    outcome
}

/// Makes the new parity in the first buffers of `scratch`; the strips that are absent.
async fn make_parity<D: Disk>(
    core: &Core<D>,
    piece: &Piece<'_>,
    scratch: &mut Scratch,
    outcome: &mut Outcome,
) -> Set {
    let (shared, stripe) = (&core.shared, piece.stripe);
    let (data, parity) = (shared.geometry.data(), shared.geometry.parity());
    let mut absent = shared.absent(stripe);
    let mut unreadable = Set::default();
    loop {
        absent = absent.union(shared.absent(stripe));
        let lost = absent.union(unreadable);
        let Some(method) = choose(data, parity, piece.touched, absent, lost) else {
            *outcome = Err(match absent.len() > parity {
                true => DiskError::WriteFault,
                false => DiskError::UnrecoveredRead,
            });
            return absent;
        };
        scratch.clear();
        let ends = gather(core, piece, method, lost, absent, scratch).await;
        for role in ends.unreadable.iter() {
            unreadable = unreadable.with(shared.geometry.index_of(stripe, role));
        }
        if let Err(error) = core.fail_all(ends.failed).await {
            *outcome = Err(error);
            return absent;
        }
        if ends.unreadable.is_empty() && ends.failed.is_empty() {
            compute(core, piece, method, lost, scratch);
            return absent;
        }
    }
}

/// The data strips whose rows are held in scratch.
fn held(method: Method, data: usize, touched: Set) -> Set {
    match method {
        Method::Full | Method::DataOnly => Set::default(),
        Method::Modify => touched,
        Method::Reconstruct => Set::first(data).without(touched),
        Method::Restore => Set::first(data),
    }
}

/// Where scratch holds a strip: parity, then the headers' buffer, then data.
fn place(held: Set, data: usize, parity: usize, index: usize) -> usize {
    match index.checked_sub(data) {
        Some(parity_index) => parity_index,
        None => parity + 1 + Set(held.0 & ((1 << index) - 1)).len(),
    }
}

/// Reads what the method needs.
async fn gather<D: Disk>(
    core: &Core<D>,
    piece: &Piece<'_>,
    method: Method,
    lost: Set,
    absent: Set,
    scratch: &mut Scratch,
) -> Ends {
    let geometry = core.shared.geometry;
    let (data, parity) = (geometry.data(), geometry.parity());
    let (bytes, held) = (
        (piece.rows.end - piece.rows.start) as usize,
        held(method, data, piece.touched),
    );
    let headers = geometry.roles() * geometry.block_size().bytes();
    let lengths = std::iter::repeat_n(bytes, parity)
        .chain([headers])
        .chain(std::iter::repeat_n(bytes, held.len()));
    core.scratch(lengths, scratch).await;
    let written = Set::first(data + parity)
        .without(Set::first(data))
        .without(absent);
    let reads = match method {
        Method::Full | Method::DataOnly => return Ends::default(),
        Method::Modify => held.union(written),
        Method::Reconstruct => held,
        Method::Restore => match core.plan(lost) {
            Some(plan) => plan.sources().iter().copied().collect(),
            None => Set::default(),
        },
    };
    let at = geometry.row_lba(piece.stripe, piece.rows.start);
    let mut fan = Fan::new();
    for index in reads.iter() {
        let role = geometry.role_of(piece.stripe, index);
        let into = one(scratch[place(held, data, parity, index)].clone());
        fan.transfer(core, role, at, || Transfer::Read(into)).await;
    }
    let mut ends = fan.land(core).await;
    // A role that failed meanwhile may have another disk by now, which has nothing of the stripe yet.
    let gone = Set(reads.0 & core.shared.absent(piece.stripe).0);
    let gone = gone
        .iter()
        .map(|index| geometry.role_of(piece.stripe, index));
    ends.unreadable = ends.unreadable.union(gone.collect());
    ends
}

/// Makes the new parity of what was gathered.
fn compute<D: Disk>(
    core: &Core<D>,
    piece: &Piece<'_>,
    method: Method,
    lost: Set,
    scratch: &mut Scratch,
) {
    let geometry = core.shared.geometry;
    let (data, parity) = (geometry.data(), geometry.parity());
    let (touched, held) = (piece.touched, held(method, data, piece.touched));
    let codec = core.shared.codec.as_ref().expect("a level with parity");
    match method {
        Method::DataOnly => return,
        Method::Modify => {
            let (parities, olds) = scratch.split_at_mut(parity + 1);
            for (old, strip) in olds.iter_mut().zip(touched.iter()) {
                let new = piece.data(core, strip);
                update(codec, strip, old, &new, &mut parities[..parity]);
            }
            return;
        }
        Method::Restore => restore(core, data, parity, lost.without(touched), lost, scratch),
        Method::Full | Method::Reconstruct => {}
    }
    let sources: ArrayVec<Segments, DATA_MAX> = (0..data)
        .map(|strip| match touched.has(strip) {
            true => piece.data(core, strip),
            false => one(scratch[place(held, data, parity, strip)].clone()),
        })
        .collect();
    encode(codec, &sources, &mut scratch[..parity]);
}

/// Makes the data strips of `wanted` from what scratch holds of all others.
fn restore<D: Disk>(
    core: &Core<D>,
    data: usize,
    parity: usize,
    wanted: Set,
    lost: Set,
    scratch: &mut Scratch,
) {
    let plan = core.plan(lost).expect("chosen where there is one");
    let held = Set::first(data);
    for (number, &index) in plan.lost().iter().enumerate() {
        if index >= data || !wanted.has(index) {
            continue;
        }
        let mut into = scratch[place(held, data, parity, index)].clone();
        let sources = plan.sources().iter();
        let guards: ArrayVec<Bytes<'_>, DATA_MAX> = sources
            .map(|&source| scratch[place(held, data, parity, source)].bytes())
            .collect();
        let slices: ArrayVec<&[u8], DATA_MAX> = guards.iter().map(|guard| &guard[..]).collect();
        plan.reconstruct_one(number, &slices, &mut into.bytes_mut());
    }
}

/// Applies what changes of one strip to the parity; `old` becomes the difference.
fn update(codec: &Codec, strip: usize, old: &mut Buffer, new: &Segments, parities: &mut [Buffer]) {
    let mut old = old.bytes_mut();
    let mut at = 0;
    for piece in new {
        let piece = piece.bytes();
        xor_into(&[&piece[..]], &mut old[at..at + piece.len()]);
        at += piece.len();
    }
    let mut guards: ArrayVec<BytesMut<'_>, PARITY_MAX> =
        parities.iter_mut().map(Buffer::bytes_mut).collect();
    let mut slices: ArrayVec<&mut [u8], PARITY_MAX> =
        guards.iter_mut().map(|guard| &mut guard[..]).collect();
    codec.update(strip, &old, &mut slices);
}

/// Makes all parity of all data, in pieces that are in one buffer of each strip.
pub(crate) fn encode(codec: &Codec, sources: &[Segments], parities: &mut [Buffer]) {
    let guards: ArrayVec<ArrayVec<Bytes<'_>, SEGMENTS_MAX>, DATA_MAX> = sources
        .iter()
        .map(|strip| strip.iter().map(Buffer::bytes).collect())
        .collect();
    let mut outputs: ArrayVec<BytesMut<'_>, PARITY_MAX> =
        parities.iter_mut().map(Buffer::bytes_mut).collect();
    let bytes = outputs.first().map_or(0, |output| output.len());
    let mut at = 0;
    while at < bytes {
        let mut pieces: ArrayVec<&[u8], DATA_MAX> =
            guards.iter().map(|strip| piece_at(strip, at)).collect();
        let step = pieces.iter().map(|piece| piece.len()).min().unwrap_or(0);
        assert!(step > 0, "strips of one length");
        pieces.iter_mut().for_each(|piece| *piece = &piece[..step]);
        let mut slices: ArrayVec<&mut [u8], PARITY_MAX> = outputs
            .iter_mut()
            .map(|output| &mut output[at..at + step])
            .collect();
        codec.encode(&pieces, &mut slices);
        at += step;
    }
}

/// What follows byte `at` of a strip in the same buffer.
fn piece_at<'a>(strip: &'a [Bytes<'_>], at: usize) -> &'a [u8] {
    let mut begin = 0;
    for piece in strip {
        if at < begin + piece.len() {
            return &piece[at - begin..];
        }
        begin += piece.len();
    }
    &[]
}

/// What is written to one role: its data, or a parity of scratch.
fn content<D: Disk>(
    core: &Core<D>,
    piece: &Piece<'_>,
    scratch: &Scratch,
    index: usize,
) -> Segments {
    match index.checked_sub(core.shared.geometry.data()) {
        Some(parity) => one(scratch[parity].clone()),
        None => piece.data(core, index),
    }
}

/// Steps 3 to 5.
async fn put<D: Disk>(
    core: &Core<D>,
    piece: &Piece<'_>,
    scratch: &Scratch,
    absent: Set,
    marked: bool,
) -> Outcome {
    let (shared, stripe) = (&core.shared, piece.stripe);
    let geometry = shared.geometry;
    let (data, parity) = (geometry.data(), geometry.parity());
    let parities = Set::first(data + parity).without(Set::first(data));
    let changes = piece.touched.union(parities).without(absent);
    if changes.is_empty() {
        return Err(DiskError::WriteFault);
    }
    let mut sequence = None;
    let mut durability = piece.durability;
    if geometry.is_journaled() {
        let (reserved, tail) = core.reserve(stripe).await?;
        sequence = Some(reserved);
        // The journal keeps it until it is durable in place.
        durability = Durability::Cached;
        if !marked {
            core.mark_missed(stripe).await?;
        }
        let participants = changes
            .iter()
            .map(|index| geometry.role_of(stripe, index))
            .collect::<Set>();
        let header = RecordHeader {
            array: shared.array,
            epoch: shared.epoch(),
            sequence: reserved,
            tail,
            stripe,
            more: 0,
            rows: piece.rows.clone(),
            kind: RecordKind::Write,
            participants: participants.0,
            role: 0,
            data_crc: 0,
        };
        journal(core, piece, &header, scratch, changes).await?;
    }
    let at = geometry.row_lba(stripe, piece.rows.start);
    let mut fan = Fan::new();
    for index in changes.iter() {
        let role = geometry.role_of(stripe, index);
        let from = content(core, piece, scratch, index);
        let transfer = Transfer::Write(from, durability);
        fan.transfer(core, role, at, || transfer).await;
    }
    finish(core, fan.land(core).await, sequence).await
}

/// Deals with members that could not be written in place, then lets the write retire.
pub(crate) async fn finish<D: Disk>(core: &Core<D>, ends: Ends, sequence: Option<u64>) -> Outcome {
    core.fail_all(ends.failed.union(ends.unreadable)).await?;
    if let Some(sequence) = sequence {
        core.settle(sequence);
    }
    Ok(())
}

/// Writes the parts of a write into the journals.
async fn journal<D: Disk>(
    core: &Core<D>,
    piece: &Piece<'_>,
    header: &RecordHeader,
    scratch: &Scratch,
    changes: Set,
) -> Outcome {
    #[cfg(corebay_fault)]
    if corebay_core::fault::is(corebay_core::fault::Fault::ArrayJournalSkipped) {
        return Ok(());
    }
    let geometry = core.shared.geometry;
    let (parity, block) = (geometry.parity(), geometry.block_size().bytes());
    let slot = core.shared.ring.slot(header.sequence) * geometry.slot_bytes();
    let data_at = geometry.journal_offset() + slot + RECORD_HEADER_BYTES;
    let (header_at, data_at) = (
        geometry.member_lba(data_at - block as u64),
        geometry.member_lba(data_at),
    );
    let header_of = |role: usize| scratch[parity].slice(role * block..(role + 1) * block);
    // Parts with as many pieces as a transfer takes leave no room for the header beside them.
    let mut split = Set::default();
    let mut fan = Fan::new();
    for index in changes.iter() {
        let role = geometry.role_of(header.stripe, index);
        let mut from = content(core, piece, scratch, index);
        let own = RecordHeader {
            role: role as u8,
            data_crc: crc_of(&from),
            ..header.clone()
        };
        own.encode(&mut header_of(role).bytes_mut());
        let at = match from.is_full() {
            true => {
                split = split.with(role);
                data_at
            }
            false => {
                from.insert(0, header_of(role));
                header_at
            }
        };
        let transfer = Transfer::Write(from, journal_durability());
        fan.transfer(core, role, at, || transfer).await;
    }
    let mut ends = fan.land(core).await;
    if !split.is_empty() {
        let mut fan = Fan::new();
        for role in split.iter() {
            let transfer = Transfer::Write(one(header_of(role)), Durability::Durable);
            fan.transfer(core, role, header_at, || transfer).await;
        }
        let more = fan.land(core).await;
        ends.failed = ends.failed.union(more.failed).union(more.unreadable);
    }
    core.fail_all(ends.failed.union(ends.unreadable)).await
}

/// A part counts once it survives whatever comes.
fn journal_durability() -> Durability {
    #[cfg(corebay_fault)]
    if corebay_core::fault::is(corebay_core::fault::Fault::ArrayJournalCached) {
        return Durability::Cached;
    }
    Durability::Durable
}

pub(crate) fn crc_of(segments: &[Buffer]) -> u32 {
    let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
    for buffer in segments {
        digest.update(&buffer.bytes());
    }
    digest.finalize() as u32
}

/// Zeroes whole stripes of one region: the parity of zeroes is zeroes, so there is nothing to be made, and
/// on each member they lie one after the other.
pub(crate) async fn zero_stripes<D: Disk>(
    core: &Core<D>,
    stripes: Range<u64>,
    space: Space,
    durability: Durability,
) -> Outcome {
    let locks = &core.shared.stripes;
    let locked = locks.acquire_run(&core.parking, stripes.clone()).await;
    core.shared.changes.begin(stripes.clone());
    let outcome = zero_locked(core, stripes.clone(), space, durability).await;
    core.shared.changes.end(stripes);
    locks.release_run(locked);
    outcome
}

async fn zero_locked<D: Disk>(
    core: &Core<D>,
    stripes: Range<u64>,
    space: Space,
    durability: Durability,
) -> Outcome {
    let shared = &core.shared;
    let geometry = shared.geometry;
    if shared.is_stopped() {
        return Err(DiskError::WriteFault);
    }
    // However it was before: zeroing is rare enough to be marked always where it may be needed.
    let marked = shared.has_redundancy() && !(geometry.is_journaled() && shared.is_whole());
    if marked {
        core.mark(stripes.start).await?;
    }
    let mut at = stripes.start;
    while at < stripes.end {
        let roles = good_roles(shared, at);
        let alike = |stripe: &u64| shared.is_whole() || good_roles(shared, *stripe) == roles;
        let end = at + 1 + (at + 1..stripes.end).take_while(alike).count() as u64;
        zero_alike(core, at..end, roles, marked, (space, durability)).await?;
        at = end;
    }
    if marked {
        shared.dirty.leave(shared.dirty.region_of(stripes.start));
    }
    Ok(())
}

/// The roles that hold what they should of a stripe.
fn good_roles(shared: &Shared, stripe: u64) -> Set {
    let roles = 0..shared.geometry.roles();
    match shared.is_whole() {
        true => roles.collect(),
        false => roles.filter(|role| shared.is_good(*role, stripe)).collect(),
    }
}

/// Stripes in which the same roles are good.
async fn zero_alike<D: Disk>(
    core: &Core<D>,
    stripes: Range<u64>,
    roles: Set,
    marked: bool,
    (space, durability): (Space, Durability),
) -> Outcome {
    let shared = &core.shared;
    let geometry = shared.geometry;
    let mut sequence = None;
    if geometry.is_journaled() {
        // Scratch first: who holds room in the ring waits for nobody who waits for such room.
        let mut scratch = Scratch::new();
        let headers = geometry.roles() * geometry.block_size().bytes();
        core.scratch(std::iter::once(headers), &mut scratch).await;
        let reserved = core.reserve(stripes.start).await?;
        sequence = Some(reserved.0);
        if !marked {
            core.mark_missed(stripes.start).await?;
        }
        journal_zero(core, &stripes, roles, reserved, &scratch[0]).await?;
    }
    let bytes = u64::from(geometry.strip_bytes()) * (stripes.end - stripes.start);
    let (at, blocks) = (
        geometry.row_lba(stripes.start, 0),
        geometry.block_size().blocks_in(bytes),
    );
    let mut fan = Fan::new();
    for role in roles.iter() {
        let transfer = Transfer::Zero(blocks, space, durability);
        fan.transfer(core, role, at, || transfer).await;
    }
    let ends = fan.land(core).await;
    if !shared.has_redundancy() && !ends.failed.union(ends.unreadable).is_empty() {
        return Err(DiskError::WriteFault);
    }
    finish(core, ends, sequence).await
}

async fn journal_zero<D: Disk>(
    core: &Core<D>,
    stripes: &Range<u64>,
    roles: Set,
    (sequence, tail): (u64, u64),
    headers: &Buffer,
) -> Outcome {
    let geometry = core.shared.geometry;
    let block = geometry.block_size().bytes();
    let slot = core.shared.ring.slot(sequence) * geometry.slot_bytes();
    let at = geometry.journal_offset() + slot + RECORD_HEADER_BYTES - block as u64;
    let at = geometry.member_lba(at);
    let mut fan = Fan::new();
    for role in roles.iter() {
        let header = RecordHeader {
            array: core.shared.array,
            epoch: core.shared.epoch(),
            sequence,
            tail,
            stripe: stripes.start,
            more: (stripes.end - stripes.start - 1) as u32,
            rows: 0..geometry.strip_bytes(),
            kind: RecordKind::Zero,
            participants: roles.0,
            role: role as u8,
            data_crc: 0,
        };
        let mut buffer = headers.slice(role * block..(role + 1) * block);
        header.encode(&mut buffer.bytes_mut());
        let transfer = Transfer::Write(one(buffer), Durability::Durable);
        fan.transfer(core, role, at, || transfer).await;
    }
    let ends = fan.land(core).await;
    core.fail_all(ends.failed.union(ends.unreadable)).await
}

/// Writes a piece of one strip to all legs of a mirror.
pub(crate) async fn write_mirrored<D: Disk>(core: &Core<D>, write: &Write) -> Outcome {
    let stripe = write.band.stripe;
    let (shared, stripes) = (&core.shared, stripe..stripe + 1);
    let locked = shared.stripes.acquire(&core.parking, stripe).await;
    shared.changes.begin(stripes.clone());
    let outcome = write_legs(core, write).await;
    shared.changes.end(stripes);
    shared.stripes.release(locked);
    outcome
}

async fn write_legs<D: Disk>(core: &Core<D>, write: &Write) -> Outcome {
    let (shared, band) = (&core.shared, &write.band);
    if shared.is_stopped() {
        return Err(DiskError::WriteFault);
    }
    core.mark(band.stripe).await?;
    let at = shared.geometry.row_lba(band.stripe, band.rows.start);
    let mut fan = Fan::new();
    for role in shared.geometry.legs_of(band.strips.start) {
        if shared.is_good(role, band.stripe) {
            let from = write.data(core, band.strips.start, &band.rows);
            let transfer = Transfer::Write(from, write.durability);
            fan.transfer(core, role, at, || transfer).await;
        }
    }
    finish(core, fan.land(core).await, None).await?;
    shared.dirty.leave(shared.dirty.region_of(band.stripe));
    Ok(())
}

#[cfg(test)]
#[path = "write_tests.rs"]
mod tests;
