//! Owns making a new array of disks that hold nothing.
//!
//! # Order
//! 1. Every member is looked at: what may be somebody's data is refused before anything is written.
//! 2. All blocks of all members that the array uses are deallocated, so that what was never written
//!    reads as zeroes and parity agrees with it. A crash here leaves disks without an array. The members
//!    are worked on at the same time, and no superblock is written before all are through.
//! 3. The empty dirty map, then the superblocks are written, durably. A crash amid this leaves an array
//!    that lacks members; making it again says so by name.

use std::{
    fmt,
    future::{Future, poll_fn},
    pin::Pin,
    sync::atomic::{AtomicU64, Ordering},
    task::Poll,
};

use arrayvec::ArrayVec;
use corebay_core::{
    buffer::BufferPool,
    disk::{Disk, DiskError, Durability, Space},
    rng::Rng,
    units::{BlockSize, Lba},
};

use crate::{
    dirty::{MAP_BYTES, Marks, region_stripes},
    geometry::{
        Geometry, InvalidGeometry, MAP_OFFSETS, ROLES_MAX, SUPERBLOCK_OFFSETS, Wish, ZONE_OFFSET,
    },
    state::{ArrayState, RoleRecord, RoleState, SPARES_MAX, Uuid},
    superblock::{BadSuperblock, NAME_BYTES, SUPERBLOCK_BYTES, Superblock, codec_of},
};

/// What is on a disk that was to become a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occupant {
    /// A member of an array.
    Member {
        /// The array.
        array: Uuid,
    },
    /// A member of an array of a newer format, or a damaged one.
    Superblock(BadSuperblock),
    /// Something that is known by its signature.
    Known(&'static str),
    /// Bytes that are not zero.
    Unknown,
}

impl fmt::Display for Occupant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Member { array } => write!(f, "it is a member of array {array}"),
            Self::Superblock(BadSuperblock::Newer { version }) => {
                write!(f, "it is a member of an array of format version {version}")
            }
            Self::Superblock(_) => write!(f, "it holds a damaged superblock of an array"),
            Self::Known(what) => write!(f, "it holds {what}"),
            Self::Unknown => write!(f, "it does not begin with zeroes"),
        }
    }
}

/// What of a member is deallocated by one command, in bytes: a multiple of all blocks.
const PIECE_BYTES: u64 = 256 << 20;

/// How far an array is that is being made, for whoever looks on.
#[derive(Debug)]
pub struct Progress {
    /// Bytes that have been deallocated, and a few for what comes before and after it.
    by_member: Box<[AtomicU64]>,
    of_each: AtomicU64,
}

/// What looking at a member counts, and writing its superblocks.
const LOOK_COUNTS: u64 = 4096;

impl Progress {
    /// Of an array of so many members.
    #[must_use]
    pub fn new(members: usize) -> Self {
        Self {
            by_member: (0..members).map(|_| AtomicU64::new(0)).collect(),
            of_each: AtomicU64::new(0),
        }
    }

    /// So many bytes are to be done of each member.
    pub fn begin(&self, of_each: u64) {
        self.of_each.store(of_each, Ordering::Relaxed);
    }

    /// So many more of a member's are done.
    pub fn add(&self, member: usize, bytes: u64) {
        if let Some(done) = self.by_member.get(member) {
            done.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// The bytes of all members that are done, and all there are; 0 before that is known.
    #[must_use]
    pub fn bytes(&self) -> (u64, u64) {
        let done = self
            .by_member
            .iter()
            .map(|done| done.load(Ordering::Relaxed));
        let of_each = self.of_each.load(Ordering::Relaxed);
        (done.sum(), of_each * self.by_member.len() as u64)
    }

    /// The members that the others wait for, or would if they were through.
    pub fn behind(&self) -> impl Iterator<Item = usize> {
        let done = |place: &AtomicU64| place.load(Ordering::Relaxed);
        let least = self.by_member.iter().map(done).min();
        let members = self.by_member.iter().map(done).enumerate();
        members
            .filter(move |(_, done)| Some(*done) == least)
            .map(|(member, _)| member)
    }
}

/// Why an array was not made. Members are named by their place in the list that was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CreateError {
    /// There is no such array.
    Geometry(InvalidGeometry),
    /// Members with roles and spares are not as many as were given.
    Count {
        /// How many were given.
        given: usize,
        /// How many roles there are.
        roles: usize,
    },
    /// The name is too long.
    Name,
    /// A member's blocks have another size.
    BlockSize {
        /// Which member.
        member: usize,
        /// Its block size.
        size: BlockSize,
    },
    /// A member holds something.
    Occupied {
        /// Which member.
        member: usize,
        /// What it holds.
        by: Occupant,
    },
    /// A member failed.
    Member {
        /// Which member.
        member: usize,
        /// How.
        error: DiskError,
    },
    /// No buffer was free.
    NoMemory,
}

impl fmt::Display for CreateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Geometry(error) => write!(f, "{error}"),
            Self::Count { given, roles } => {
                write!(
                    f,
                    "{given} disks for {roles} roles and at most {SPARES_MAX} spares"
                )
            }
            Self::Name => write!(f, "the name is longer than {NAME_BYTES} bytes"),
            Self::BlockSize { member, size } => {
                write!(f, "disk {member} has blocks of {size} bytes")
            }
            Self::Occupied { member, by } => write!(f, "disk {member} is not free: {by}"),
            Self::Member { member, error } => write!(f, "disk {member}: {error}"),
            Self::NoMemory => write!(f, "no buffer is free"),
        }
    }
}

impl std::error::Error for CreateError {}

/// Makes an array of `members`: the first ones get the roles in their order, the others are spares.
/// `overwrite` says by place which members may lose what they hold.
///
/// # Errors
/// Where that cannot be; nothing was written unless a member failed.
pub async fn create<D: Disk>(
    members: &[D],
    wish: Wish,
    name: &str,
    overwrite: &[bool],
    rng: &mut Rng,
    pool: &BufferPool,
) -> Result<Uuid, CreateError> {
    let progress = Progress::new(members.len());
    create_watched(members, wish, name, overwrite, rng, pool, &progress).await
}

/// The same, and says how far it is. It takes as long as the members take.
///
/// # Errors
/// Where that cannot be; nothing was written unless a member failed.
pub async fn create_watched<D: Disk>(
    members: &[D],
    wish: Wish,
    name: &str,
    overwrite: &[bool],
    rng: &mut Rng,
    pool: &BufferPool,
    progress: &Progress,
) -> Result<Uuid, CreateError> {
    let spares = members.len().checked_sub(wish.roles);
    if spares.is_none_or(|spares| spares > SPARES_MAX) {
        let (given, roles) = (members.len(), wish.roles);
        return Err(CreateError::Count { given, roles });
    }
    let name = ArrayVec::try_from(name.as_bytes()).map_err(|_| CreateError::Name)?;
    for (member, disk) in members.iter().enumerate() {
        let size = disk.info().block_size;
        if size != wish.block_size {
            return Err(CreateError::BlockSize { member, size });
        }
    }
    let smallest = members.iter().map(|disk| disk.info().bytes()).min();
    let geometry = Geometry::new(wish, smallest.unwrap_or(0)).map_err(CreateError::Geometry)?;
    progress.begin(2 * LOOK_COUNTS + geometry.member_bytes());
    let look = async |member: usize| {
        if !overwrite.get(member).copied().unwrap_or(false) {
            refuse_occupied(member, &members[member], pool).await?;
        }
        progress.add(member, LOOK_COUNTS);
        Ok(())
    };
    all((0..members.len()).map(look)).await?;
    let mut uuid = || {
        let mut bytes = [0; 16];
        rng.fill(&mut bytes);
        // A random UUID (version 4, variant 1).
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        Uuid(bytes)
    };
    let array = uuid();
    let uuids: Vec<Uuid> = members.iter().map(|_| uuid()).collect();
    let record = |&member: &Uuid| RoleRecord {
        member,
        state: RoleState::Active,
    };
    let template = Superblock {
        array,
        member: array,
        name,
        codec: codec_of(&geometry),
        geometry,
        state: ArrayState {
            generation: 1,
            epoch: 1,
            roles: uuids[..wish.roles].iter().map(record).collect(),
            spares: uuids[wish.roles..].iter().copied().collect(),
            taken_in: [0; ROLES_MAX],
        },
    };
    let blank = async |member: usize| {
        let blanked = blank_member(&members[member], &geometry, |bytes| {
            progress.add(member, bytes);
        });
        let failed = |error| CreateError::Member { member, error };
        blanked.await.map_err(failed)
    };
    all((0..members.len()).map(blank)).await?;
    let write = async |member: usize| {
        let superblock = template.for_member(uuids[member], &template.state);
        let written = write_member(&members[member], &superblock, pool).await;
        progress.add(member, LOOK_COUNTS);
        written.map_err(|error| CreateError::Member { member, error })
    };
    all((0..members.len()).map(write)).await?;
    Ok(array)
}

/// Waits for all of them: none that comes late may spoil what follows a failure.
async fn all<F: Future<Output = Result<(), CreateError>>>(
    futures: impl Iterator<Item = F>,
) -> Result<(), CreateError> {
    let mut pending: Vec<Option<Pin<Box<F>>>> = futures.map(|own| Some(Box::pin(own))).collect();
    let mut outcomes = vec![Ok(()); pending.len()];
    poll_fn(|context| {
        for (place, outcome) in pending.iter_mut().zip(&mut outcomes) {
            let polled = place.as_mut().map(|own| own.as_mut().poll(context));
            if let Some(Poll::Ready(ended)) = polled {
                *place = None;
                *outcome = ended;
            }
        }
        match pending.iter().all(Option::is_none) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    })
    .await;
    // Of several the first one's, whoever was the quickest.
    outcomes.into_iter().collect()
}

async fn blank_member<D: Disk>(
    disk: &D,
    geometry: &Geometry,
    done: impl Fn(u64),
) -> Result<(), DiskError> {
    let (size, bytes) = (geometry.block_size(), geometry.member_bytes());
    for at in (0..bytes).step_by(PIECE_BYTES as usize) {
        let piece = PIECE_BYTES.min(bytes - at);
        let (at, blocks) = (Lba(size.blocks_in(at)), size.blocks_in(piece));
        disk.write_zeroes(at, blocks, Space::Deallocate, Durability::Durable)
            .await?;
        done(piece);
    }
    Ok(())
}

async fn write_member<D: Disk>(
    disk: &D,
    superblock: &Superblock,
    pool: &BufferPool,
) -> Result<(), DiskError> {
    let geometry = &superblock.geometry;
    let stripes = region_stripes(geometry.stripes());
    let map = Marks::none().encode(superblock.array, stripes, 1);
    write_at(disk, geometry, MAP_OFFSETS[1], &map, pool).await?;
    for offset in SUPERBLOCK_OFFSETS {
        write_at(disk, geometry, offset, &superblock.encode(), pool).await?;
    }
    disk.flush().await
}

async fn write_at<D: Disk>(
    disk: &D,
    geometry: &Geometry,
    offset: u64,
    bytes: &[u8],
    pool: &BufferPool,
) -> Result<(), DiskError> {
    const _: () = assert!(SUPERBLOCK_BYTES == MAP_BYTES);
    let mut buffer = pool.allocate(bytes.len()).await;
    buffer.bytes_mut().copy_from_slice(bytes);
    let at = geometry.member_lba(offset);
    disk.write(at, &[buffer], Durability::Durable).await
}

/// Refuses a disk whose beginning is not zeroes: whose it is, is not ours to guess.
async fn refuse_occupied<D: Disk>(
    member: usize,
    disk: &D,
    pool: &BufferPool,
) -> Result<(), CreateError> {
    match occupant_of(disk, pool).await {
        Ok(None) => Ok(()),
        Ok(Some(by)) => Err(CreateError::Occupied { member, by }),
        Err(error) => Err(CreateError::Member { member, error }),
    }
}

/// What lies at the beginning of a disk, if anything does.
///
/// # Errors
/// Where it cannot be read.
pub async fn occupant_of<D: Disk>(
    disk: &D,
    pool: &BufferPool,
) -> Result<Option<Occupant>, DiskError> {
    let buffer = pool.allocate(ZONE_OFFSET as usize).await;
    disk.read(Lba(0), std::slice::from_ref(&buffer)).await?;
    Ok(occupant(&buffer.bytes()))
}

/// Signatures: where, what, of whom.
const SIGNATURES: [(usize, &[u8], &str); 12] = [
    (0, b"XFSB", "an XFS filesystem"),
    (1080, &[0x53, 0xef], "an ext2, ext3 or ext4 filesystem"),
    (65600, b"_BHRfS_M", "a btrfs filesystem"),
    (3, b"NTFS    ", "an NTFS filesystem"),
    (82, b"FAT32", "a FAT filesystem"),
    (512, b"EFI PART", "a GPT partition table"),
    (4096, b"EFI PART", "a GPT partition table"),
    (512, b"LABELONE", "an LVM physical volume"),
    (0, b"LUKS", "a LUKS volume"),
    (4086, b"SWAPSPACE2", "swap space"),
    (
        4096,
        &[0xfc, 0x4e, 0x2b, 0xa9],
        "a member of a Linux md array",
    ),
    (510, &[0x55, 0xaa], "a partition table or boot sector"),
];

fn occupant(bytes: &[u8]) -> Option<Occupant> {
    for offset in SUPERBLOCK_OFFSETS {
        let at = offset as usize;
        match Superblock::decode(&bytes[at..at + SUPERBLOCK_BYTES]) {
            Ok(Superblock { array, .. }) => return Some(Occupant::Member { array }),
            Err(BadSuperblock::Absent) => {}
            Err(bad) => return Some(Occupant::Superblock(bad)),
        }
    }
    let known = SIGNATURES
        .iter()
        .find(|(at, what, _)| bytes[*at..].starts_with(what));
    match known {
        Some((.., whose)) => Some(Occupant::Known(whose)),
        None => bytes
            .iter()
            .any(|&byte| byte != 0)
            .then_some(Occupant::Unknown),
    }
}
