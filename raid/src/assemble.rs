//! Owns assembly: finding out which of the disks at hand make up an array, and making it whole again.
//!
//! # Order
//! 1. Both superblock copies of every disk are read. The newest state of the array among them counts;
//!    by it each disk is a member, a spare or refused.
//! 2. The state is written anew with the roles that have no member as failed. From here on a member
//!    that was not there is stale, whatever its own superblock says; before, nothing was changed, and
//!    it may come back. This also repairs copies that were damaged.
//! 3. Where members' dirty maps differ, which a crash amid a write of them leaves, all get the marks of
//!    all: a mark counts only once every member has it.
//! 4. The journal is replayed (`recovery.rs`). A crash here replays it again, to the same result. What cannot
//!    be made of it is marked, and is made to agree by a resync.
//! 5. The state is written with the next epoch: the journal's records are void, new ones may begin.
//! 6. Where a crash may have left the copies of the mirrored zone unequal, they are made equal.

use std::{fmt, rc::Rc, time::Duration};

use corebay_core::{
    buffer::{Buffer, BufferPool},
    disk::{Disk, DiskError},
    reactor::Reactor,
    units::{BlockSize, Lba},
};

use crate::{
    array::{Array, Assembled},
    dirty::{DirtyMap, MAP_BYTES, Marks, region_stripes, regions},
    geometry::{Geometry, MAP_OFFSETS, SUPERBLOCK_OFFSETS},
    journal::Ring,
    recovery,
    shared::{Set, Shared},
    state::{ArrayState, RoleState, Uuid},
    superblock::{BadSuperblock, SUPERBLOCK_BYTES, Superblock},
    watch::within,
};

/// Why a disk takes no part in an array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It could not be read.
    Unreadable(DiskError),
    /// It holds no superblock that is good.
    Superblock(BadSuperblock),
    /// It belongs to another array.
    Foreign {
        /// Which one.
        array: Uuid,
    },
    /// The array has done without it since, and changed.
    Stale {
        /// The role that it had.
        role: usize,
        /// The newest state that it knows.
        generation: u64,
        /// The array's.
        newest: u64,
    },
    /// It went on without the others while they went on without it.
    Diverged {
        /// The role that it had.
        role: usize,
    },
    /// The array knows it no more: it was removed or replaced.
    Removed,
    /// It has another role than the one that it comes back to.
    OtherRole {
        /// The role that it has.
        role: usize,
    },
    /// Another disk has the same identity.
    Duplicate {
        /// The place of the other one.
        of: usize,
    },
    /// It has become smaller than the array needs.
    TooSmall {
        /// Its bytes.
        bytes: u64,
        /// What is needed.
        needs: u64,
    },
    /// Its blocks have another size.
    BlockSize {
        /// Their size.
        size: BlockSize,
    },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(error) => write!(f, "it could not be read: {error}"),
            Self::Superblock(bad) => write!(f, "{bad}"),
            Self::Foreign { array } => write!(f, "it belongs to array {array}"),
            Self::Stale {
                role,
                generation,
                newest,
            } => write!(
                f,
                "it is stale: role {role} as of state {generation}, the array is at {newest}"
            ),
            Self::Diverged { role } => write!(
                f,
                "it went on as role {role} without the others: both sides have changed"
            ),
            Self::Removed => write!(f, "it was removed from the array"),
            Self::OtherRole { role } => write!(f, "it is the member of role {role}"),
            Self::Duplicate { of } => write!(f, "it has the same identity as disk {of}"),
            Self::TooSmall { bytes, needs } => {
                write!(f, "it has {bytes} bytes, the array needs {needs}")
            }
            Self::BlockSize { size } => write!(f, "it has blocks of {size} bytes"),
        }
    }
}

/// Why an array was not assembled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AssembleError {
    /// No disk is a member of the array.
    NoMember,
    /// The disks belong to several arrays, and none was named.
    SeveralArrays {
        /// Two of them.
        arrays: [Uuid; 2],
    },
    /// Too few members are there.
    TooFew {
        /// The roles that have none.
        missing: Vec<usize>,
        /// How many may be missing at most, for levels with parity.
        may_miss: usize,
    },
    /// Disks went on apart from each other, and both sides changed: which side counts is not ours to
    /// say. Assembling without the disks of one side says it.
    Diverged {
        /// The places of the disks that do not go with the newest state.
        disks: Vec<usize>,
    },
    /// Members could not be read or written.
    Member(DiskError),
    /// The scratch memory is too small.
    NoMemory,
}

impl fmt::Display for AssembleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoMember => write!(f, "no disk is a member of the array"),
            Self::SeveralArrays { arrays: [a, b] } => {
                write!(f, "the disks belong to several arrays: {a}, {b}")
            }
            Self::TooFew { missing, .. } => {
                let roles: Vec<String> = missing.iter().map(ToString::to_string).collect();
                write!(f, "too few members: nobody for role {}", roles.join(", "))
            }
            Self::Diverged { disks } => {
                let disks: Vec<String> = disks.iter().map(ToString::to_string).collect();
                write!(
                    f,
                    "disk {} went on without the others, and they without it: \
                     leave out those whose changes are to be lost",
                    disks.join(", ")
                )
            }
            Self::Member(error) => write!(f, "{error}"),
            Self::NoMemory => write!(f, "the scratch memory is too small"),
        }
    }
}

impl std::error::Error for AssembleError {}

/// An array, and what is left of the disks that were given for it.
pub struct Assembly<D: Disk> {
    /// The array, open on this core.
    pub array: Array<D>,
    /// What became of each disk.
    pub report: Report,
    /// By place: the disks that have no role, spares among them.
    pub rest: Vec<Option<D>>,
}

/// What became of each disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// By role: the place of its disk.
    pub roles: Vec<Option<usize>>,
    /// The places of spares.
    pub spares: Vec<usize>,
    /// The places of disks that take no part, and why.
    pub refused: Vec<(usize, Refusal)>,
    /// Superblock copies that were made anew of the other one.
    pub repaired_copies: usize,
    /// Writes that a crash had interrupted and that were finished.
    pub replayed: usize,
    /// Stripes in which such a write was finished in part, as the rest of it cannot be read: their blocks are old
    /// or new, and their parity is made to agree by the resync that is due.
    pub unmade: Vec<u64>,
}

pub(crate) type Found = Result<Candidate, Refusal>;

pub(crate) struct Candidate {
    pub(crate) superblock: Superblock,
    damaged_copies: usize,
}

/// Assembles the array `wanted`, or the only one there is, of disks in any order.
///
/// # Errors
/// Where that cannot be. Disks that were refused are no error as long as the others suffice.
pub async fn assemble<D: Disk>(
    disks: Vec<D>,
    wanted: Option<Uuid>,
    reactor: &Reactor,
    scratch: &BufferPool,
) -> Result<Assembly<D>, AssembleError> {
    assemble_with(disks, wanted, Stale::AreRefused, reactor, scratch).await
}

/// The same, but where too few members are up to date, stale ones are taken as if they were: the newest
/// first, and no more than are needed. What was written without them is lost in part, so blocks may
/// hold something older, or, where a stripe's strips are of different times, nothing sensible.
///
/// # Errors
/// Where that cannot be either.
pub async fn assemble_with_stale<D: Disk>(
    disks: Vec<D>,
    wanted: Option<Uuid>,
    reactor: &Reactor,
    scratch: &BufferPool,
) -> Result<Assembly<D>, AssembleError> {
    assemble_with(disks, wanted, Stale::AreTaken, reactor, scratch).await
}

/// What becomes of members that are not up to date.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stale {
    AreRefused,
    AreTaken,
}

/// Takes as many stale members as are needed, the newest first; true where that were any.
fn take_stale(report: &mut Report, found: &[Found], superblock: &mut Superblock) -> bool {
    let mut stale: Vec<(u64, usize, usize)> = Vec::new();
    for (place, refusal) in &report.refused {
        let (Refusal::Stale { role, .. } | Refusal::Diverged { role }) = *refusal else {
            continue;
        };
        if let Ok(candidate) = &found[*place] {
            stale.push((candidate.superblock.state.generation, role, *place));
        }
    }
    stale.sort_unstable();
    let mut any = false;
    while !superblock.state.is_viable(&superblock.geometry)
        && let Some((_, role, place)) = stale.pop()
    {
        superblock.state.roles[role].state = RoleState::Active;
        report.roles[role] = Some(place);
        report.refused.retain(|(refused, _)| *refused != place);
        any = true;
    }
    any
}

async fn assemble_with<D: Disk>(
    disks: Vec<D>,
    wanted: Option<Uuid>,
    stale: Stale,
    reactor: &Reactor,
    scratch: &BufferPool,
) -> Result<Assembly<D>, AssembleError> {
    let mut found = Vec::new();
    for disk in &disks {
        let looked = within(reactor, LOOK, look(disk, scratch)).await;
        found.push(looked.unwrap_or(Err(Refusal::Unreadable(DiskError::TimedOut))));
    }
    let newest = newest(&found, wanted)?;
    let mut report = sort(&disks, &found, &newest);
    let diverged = report.refused.iter();
    let disks_apart: Vec<usize> = diverged
        .filter(|(_, refusal)| matches!(refusal, Refusal::Diverged { .. }))
        .map(|(place, _)| *place)
        .collect();
    if !disks_apart.is_empty() && stale == Stale::AreRefused {
        return Err(AssembleError::Diverged { disks: disks_apart });
    }
    let mut superblock = newest.clone();
    for (role, place) in report.roles.iter().enumerate() {
        if place.is_none() {
            superblock.state.roles[role].state = RoleState::Failed;
        }
    }
    let geometry = superblock.geometry;
    let took_stale = stale == Stale::AreTaken && take_stale(&mut report, &found, &mut superblock);
    if !superblock.state.is_viable(&geometry) {
        let roles = superblock.state.roles.iter().enumerate();
        let missing = roles.filter(|(_, record)| record.state != RoleState::Active);
        return Err(AssembleError::TooFew {
            missing: missing.map(|(role, _)| role).collect(),
            may_miss: geometry.parity(),
        });
    }
    let mut disks: Vec<Option<D>> = disks.into_iter().map(Some).collect();
    let roles = report.roles.iter();
    let members: Vec<Option<D>> = roles
        .map(|place| place.and_then(|place| disks[place].take()))
        .collect();
    let (maps, members) = read_maps(&superblock, members, reactor, scratch).await;
    let (dirty, behind) = settle_marks(&superblock, &maps, took_stale);
    let volatile = |disk: &Option<Rc<D>>| disk.as_ref().is_some_and(|d| d.info().volatile_cache);
    let deallocates = |disk: &Option<Rc<D>>| {
        disk.as_ref()
            .is_some_and(|d| d.info().deallocate_granularity.is_some())
    };
    let there = members.iter().flatten();
    let atomic_write_bytes = there.map(|disk| disk.info().atomic_write_bytes).min();
    let volatile = members.iter().any(volatile);
    let deallocates = members.iter().all(deallocates);
    let members: Vec<Option<D>> = members
        .into_iter()
        .map(|disk| disk.and_then(Rc::into_inner))
        .collect();
    // The ring begins where the journal ends, which is known only once it has been read.
    let ring = Ring::new(geometry.wish().journal_slots, 0);
    let assembled = Assembled {
        shared: Shared::new(superblock, dirty, ring, volatile).into(),
        deallocates,
        atomic_write_bytes: atomic_write_bytes.unwrap_or(512),
    };
    let array =
        Array::open(&assembled, members, reactor, scratch).map_err(|_| AssembleError::NoMemory)?;
    start(&array, behind, &mut report)
        .await
        .map_err(AssembleError::Member)?;
    if took_stale {
        let all = Marks::all(regions(geometry.stripes()));
        array.core.shared.dirty.unequal.store(&all);
    }
    Ok(Assembly {
        array,
        report,
        rest: disks,
    })
}

/// Steps 2 to 6. `behind` is there where members' maps differ.
async fn start<D: Disk>(
    array: &Array<D>,
    behind: Option<Set>,
    report: &mut Report,
) -> Result<(), DiskError> {
    let core = &array.core;
    core.change(|_| Ok(true)).await?;
    if let Some(behind) = behind {
        core.level_maps(behind).await?;
    }
    let mut next = 0;
    if core.shared.geometry.is_journaled() {
        let replay = recovery::replay(core).await?;
        (next, report.replayed) = (replay.next, replay.writes);
        report.unmade = replay.unmade;
    }
    core.shared.begin_epoch(next);
    let dirty = &core.shared.dirty;
    for stripe in &report.unmade {
        dirty.unequal.set(dirty.region_of(*stripe));
    }
    let epoch = core.shared.epoch();
    core.change(|state| {
        state.epoch = epoch;
        Ok(true)
    })
    .await?;
    core.mend_zone().await
}

/// What a disk says of itself and of its array. Nothing is written.
///
/// # Errors
/// Where it is no member of an array, or cannot say.
pub async fn examine<D: Disk>(disk: &D, pool: &BufferPool) -> Result<Superblock, Refusal> {
    let found = look(disk, pool).await;
    found.map(|candidate| candidate.superblock)
}

/// How long reads of a disk that is looked at may take: what hangs has no part in the array.
pub(crate) const LOOK: Duration = Duration::from_secs(10);

/// Looks at a disk that comes back to a role whose member is away: what its superblocks say counts, as
/// it may have been wiped or used elsewhere meanwhile. [`Array::take_back`] may follow. Nothing is
/// written.
///
/// # Errors
/// Where it is not that member, or went on without the others.
pub async fn check_returning<D: Disk>(
    disk: &D,
    assembled: &Assembled,
    role: usize,
    pool: &BufferPool,
) -> Result<(), Refusal> {
    let own = examine(disk, pool).await?;
    returning(disk, &own, &assembled.shared, role).map(drop)
}

/// What a member holds that comes back to a role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Holds {
    /// All but what was written since it went.
    AllButMissed,
    /// Not even that: it went while it was being rebuilt.
    Part,
}

/// Judges a disk that comes back to a role by its own superblock.
pub(crate) fn returning<D: Disk>(
    disk: &D,
    own: &Superblock,
    shared: &Shared,
    role: usize,
) -> Result<Holds, Refusal> {
    let newest = shared.superblock(own.member, &shared.state().clone());
    match judge(disk, own, &newest) {
        Ok(Some(has)) | Err(Refusal::Stale { role: has, .. }) if has == role => {}
        Ok(Some(role)) | Err(Refusal::Stale { role, .. }) => {
            return Err(Refusal::OtherRole { role });
        }
        Ok(None) => return Err(Refusal::Removed),
        Err(refusal) => return Err(refusal),
    }
    // It became active only with all of it, and what it misses since is marked.
    let record = own.state.role_of(own.member);
    match record.map(|role| own.state.roles[role].state) {
        Some(RoleState::Rebuilding { delta: false, .. }) => Ok(Holds::Part),
        _ => Ok(Holds::AllButMissed),
    }
}

/// Reads both copies of a disk's superblock.
async fn look<D: Disk>(disk: &D, pool: &BufferPool) -> Result<Candidate, Refusal> {
    look_with(disk, &pool.allocate(SUPERBLOCK_BYTES).await).await
}

/// The same, by this buffer.
pub(crate) async fn look_with<D: Disk>(disk: &D, buffer: &Buffer) -> Found {
    let size = disk.info().block_size;
    let mut good: Option<Superblock> = None;
    let (mut bad, mut damaged) = (Refusal::Superblock(BadSuperblock::Absent), 0);
    for offset in SUPERBLOCK_OFFSETS {
        let at = Lba(size.blocks_in(offset));
        if !disk
            .info()
            .contains(at, size.blocks_in(SUPERBLOCK_BYTES as u64))
        {
            continue;
        }
        if let Err(error) = disk.read(at, std::slice::from_ref(buffer)).await {
            damaged += 1;
            if bad == Refusal::Superblock(BadSuperblock::Absent) {
                bad = Refusal::Unreadable(error);
            }
            continue;
        }
        match Superblock::decode(&buffer.bytes()) {
            Ok(superblock) => {
                let newer =
                    |known: &Superblock| superblock.state.generation > known.state.generation;
                if good.as_ref().is_none_or(newer) {
                    good = Some(superblock);
                }
            }
            // What a newer program wrote last counts, also where the other copy is older.
            Err(newer @ BadSuperblock::Newer { .. }) => return Err(Refusal::Superblock(newer)),
            Err(other) => {
                damaged += 1;
                if other != BadSuperblock::Absent {
                    bad = Refusal::Superblock(other);
                }
            }
        }
    }
    match good {
        Some(superblock) => Ok(Candidate {
            superblock,
            damaged_copies: damaged,
        }),
        None => Err(bad),
    }
}

/// The newest superblock of the array.
fn newest(found: &[Found], wanted: Option<Uuid>) -> Result<Superblock, AssembleError> {
    let superblocks = || {
        found
            .iter()
            .flatten()
            .map(|candidate| &candidate.superblock)
    };
    let array = match wanted {
        Some(array) => array,
        None => {
            let first = superblocks().next().ok_or(AssembleError::NoMember)?.array;
            if let Some(other) = superblocks().find(|superblock| superblock.array != first) {
                return Err(AssembleError::SeveralArrays {
                    arrays: [first, other.array],
                });
            }
            first
        }
    };
    let members = superblocks().filter(|superblock| superblock.array == array);
    members
        .max_by_key(|superblock| superblock.state.generation)
        .cloned()
        .ok_or(AssembleError::NoMember)
}

/// What each disk is.
fn sort<D: Disk>(disks: &[D], found: &[Found], newest: &Superblock) -> Report {
    let mut report = Report {
        roles: vec![None; newest.geometry.roles()],
        spares: Vec::new(),
        refused: Vec::new(),
        repaired_copies: 0,
        replayed: 0,
        unmade: Vec::new(),
    };
    let mut known: Vec<(Uuid, usize)> = Vec::new();
    for (place, (disk, found)) in disks.iter().zip(found).enumerate() {
        let candidate = match found {
            Ok(candidate) => candidate,
            Err(refusal) => {
                report.refused.push((place, *refusal));
                continue;
            }
        };
        let member = candidate.superblock.member;
        let twin = known.iter().find(|(uuid, _)| *uuid == member);
        let verdict = match twin {
            Some(&(_, of)) if candidate.superblock.array == newest.array => {
                Err(Refusal::Duplicate { of })
            }
            _ => judge(disk, &candidate.superblock, newest),
        };
        known.push((member, place));
        match verdict {
            Ok(Some(role)) => {
                report.roles[role] = Some(place);
                report.repaired_copies += candidate.damaged_copies;
            }
            Ok(None) => report.spares.push(place),
            Err(refusal) => report.refused.push((place, refusal)),
        }
    }
    report
}

/// A disk's role, or none for a spare.
fn judge<D: Disk>(
    disk: &D,
    own: &Superblock,
    newest: &Superblock,
) -> Result<Option<usize>, Refusal> {
    if own.array != newest.array {
        return Err(Refusal::Foreign { array: own.array });
    }
    let info = disk.info();
    if info.block_size != newest.geometry.block_size() {
        return Err(Refusal::BlockSize {
            size: info.block_size,
        });
    }
    let needs = newest.geometry.member_bytes();
    if info.bytes() < needs {
        return Err(Refusal::TooSmall {
            bytes: info.bytes(),
            needs,
        });
    }
    let Some(role) = newest.state.role_of(own.member) else {
        return match newest.state.spares.contains(&own.member) {
            true => Ok(None),
            false => Err(Refusal::Removed),
        };
    };
    let (generation, current) = (own.state.generation, newest.state.generation);
    let failed = newest.state.roles[role].state == RoleState::Failed;
    // It may have gone on without the others only if it calls all of them failed: its state counted
    // only once it was on every member that it does not call failed, and what such a one went on to
    // contains that state. Of those that have been taken in since, it may have been right. By member,
    // as roles move up where a leg before them is removed; one that it should know and does not was
    // taken in by others that had gone on without it.
    let calls_failed = |state: &ArrayState, member: Uuid| {
        let record = state.role_of(member).map(|role| state.roles[role].state);
        record.is_none_or(|state| state == RoleState::Failed)
    };
    let went_on_alone = || {
        let roles = newest.state.roles.iter().zip(newest.state.taken_in);
        let mut others = roles
            .filter(|(now, since)| now.state == RoleState::Active && *since <= generation)
            .map(|(now, _)| calls_failed(&own.state, now.member))
            .peekable();
        others.peek().is_some() && others.all(|failed| failed)
    };
    if failed && !calls_failed(&own.state, own.member) && went_on_alone() {
        return Err(Refusal::Diverged { role });
    }
    // Crashes amid changes leave members states behind. That is no harm: a state that counts is on
    // all members that it does not call failed.
    if failed {
        return Err(Refusal::Stale {
            role,
            generation,
            newest: current,
        });
    }
    Ok(Some(role))
}

/// The newest map of each member, by role.
async fn read_maps<D: Disk>(
    superblock: &Superblock,
    members: Vec<Option<D>>,
    reactor: &Reactor,
    pool: &BufferPool,
) -> (Vec<MemberMap>, Vec<Option<Rc<D>>>) {
    let geometry: &Geometry = &superblock.geometry;
    let members: Vec<Option<Rc<D>>> = members.into_iter().map(|m| m.map(Rc::new)).collect();
    let stripes = region_stripes(geometry.stripes());
    let mut maps = Vec::new();
    for (role, disk) in members.iter().enumerate() {
        let Some(disk) = disk else { continue };
        let mut own: Option<(u64, Marks)> = None;
        for offset in MAP_OFFSETS {
            let buffer = pool.allocate(MAP_BYTES).await;
            let at = geometry.member_lba(offset);
            let read = disk.read(at, std::slice::from_ref(&buffer));
            if within(reactor, LOOK, read).await != Some(Ok(())) {
                continue;
            }
            let read = Marks::decode(&buffer.bytes(), superblock.array, stripes);
            let newer = |read: &(u64, Marks)| own.as_ref().is_none_or(|own| read.0 > own.0);
            if let Some(read) = read.filter(newer) {
                own = Some(read);
            }
        }
        maps.push((role, own));
    }
    (maps, members)
}

/// A role, and the sequence and the marks of its member's newest map, if that has a good one.
type MemberMap = (usize, Option<(u64, Marks)>);

/// The marks of all members together; everything is marked where none has a good map, or where stale
/// members were taken. And, unless all members have just these, who has to get them first: see
/// [`level_maps`](crate::engine::Core::level_maps).
fn settle_marks(
    superblock: &Superblock,
    maps: &[MemberMap],
    took_stale: bool,
) -> (DirtyMap, Option<Set>) {
    let stripes = superblock.geometry.stripes();
    let good = || maps.iter().filter_map(|(_, map)| map.as_ref());
    let newest = good().map(|(sequence, _)| *sequence).max().unwrap_or(0);
    let mut marks = Marks::none();
    good().for_each(|(_, own)| marks.add(own));
    if took_stale || good().next().is_none() {
        marks = Marks::all(regions(stripes));
    }
    let dirty = DirtyMap::new(stripes, &marks, newest);
    let elsewhere = |(sequence, _): &(u64, Marks)| sequence % 2 != newest % 2;
    let behind = maps
        .iter()
        .filter(|(_, map)| map.as_ref().is_none_or(elsewhere));
    let behind = behind.map(|(role, _)| *role).collect();
    let all = Some((newest, marks));
    let level = maps.iter().all(|(_, map)| *map == all);
    (dirty, (!level).then_some(behind))
}
