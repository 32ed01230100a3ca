//! Metadata that are wrong although all their checksums are right: whoever made them, the pool is refused
//! or goes on with what they say; nothing panics and nothing hangs.

use crate::support::{Medium, MediumDisk, Node};
use corebay_core::{
    buffer::Buffer,
    disk::{Disk, Durability, Space},
    rng::Rng,
    units::{BlockSize, Lba},
};
use corebay_lvol::{
    Identity, Volume, VolumeId,
    error::PoolError,
    format::{
        COPIES, PAGE_BYTES, SUPERBLOCK_AT, crc32c,
        record::{BATCH_HEADER_BYTES, Batch, Record},
        root::Root,
        superblock::Superblock,
    },
};

const BLOCKS: u64 = 3000;
const PAGE: u64 = PAGE_BYTES as u64;

/// A pool with all there is: a volume with fragments, snapshots, a clone, a deleted volume, exports.
fn pool() -> Medium {
    let medium = Medium::new(BlockSize::B512, 8 << 20, false, 1);
    let node = Node::create(&medium);
    let id = node.create_volume("v", BLOCKS);
    let volume = node.open(id);
    node.write(&volume, 0, 600, 1, Durability::Cached).unwrap();
    node.snapshot(id, "s");
    node.write(&volume, 5, 9, 2, Durability::Cached).unwrap();
    node.snapshot(id, "t");
    node.write(&volume, 7, 300, 3, Durability::Cached).unwrap();
    let far = node.create_volume("far", 1 << 24);
    let distant = node.open(far);
    node.write(&distant, (1 << 24) - 3, 3, 4, Durability::Cached)
        .unwrap();
    node.run(move |pool| async move {
        let clone = Identity {
            name: "c".to_owned(),
            uuid: [5; 16],
        };
        let clone = pool.clone_volume(id, &clone).await?;
        let export = corebay_lvol::Export {
            subsystem: "nqn.2024-01.example:s".to_owned(),
            nsid: 1,
            hosts: vec!["nqn.2024-01.example:h".to_owned()],
            ..Default::default()
        };
        pool.set_export(clone, Some(&export)).await?;
        pool.checkpoint().await
    })
    .unwrap();
    drop((volume, distant, node));
    medium
}

/// The parts of a checkpoint, to be changed and signed again.
struct Forger {
    medium: Medium,
    superblock: Superblock,
    root: Vec<u8>,
    parsed: Root,
    rng: Rng,
}

impl Forger {
    fn new(base: &Medium, seed: u64) -> Self {
        let medium = base.copy(seed);
        let superblock = Superblock::parse(&medium.bytes(SUPERBLOCK_AT[0], PAGE)).unwrap();
        let at = superblock.layout.root_at(0, superblock.generation);
        let mut root = medium.bytes(at, superblock.layout.root_bytes);
        root.truncate(superblock.root_len as usize);
        let parsed = Root::parse(&root, superblock.layout.extents()).unwrap();
        Self {
            medium,
            superblock,
            root,
            parsed,
            rng: Rng::from_seed(seed),
        }
    }

    fn places(&self, place: u64) -> [u64; COPIES] {
        let layout = self.superblock.layout;
        let pages = layout.pages_per_extent();
        let pair = self.parsed.chunks[((place - 1) / pages) as usize];
        pair.map(|extent| {
            layout.data_at() + extent.0 * layout.extent_bytes() + (place - 1) % pages * PAGE
        })
    }

    fn write(&self, place: u64, page: &[u8]) {
        for at in self.places(place) {
            self.medium.overwrite(at, page);
        }
    }

    /// Changes some bytes, more likely to small numbers or by a little.
    fn spoil(&mut self, bytes: &mut [u8]) {
        for _ in 0..1 + self.rng.below(4) {
            let at = self.rng.below(bytes.len() as u64) as usize;
            bytes[at] = match self.rng.below(5) {
                0 => self.rng.below(256) as u8,
                1 => 0,
                2 => 0xff,
                3 => bytes[at].wrapping_add(1),
                _ => bytes[at] ^ 1 << self.rng.below(8),
            };
        }
    }

    /// Changes a page, a piece of a table, or the root.
    fn forge(mut self) -> Medium {
        let what = self.rng.below(8);
        let mut root = self.root.clone();
        if what == 0 {
            self.spoil(&mut root);
        } else {
            let table = self.rng.below(3) as usize;
            let pieces = self.parsed.pieces[table].clone();
            let number = self.rng.below(pieces.len() as u64) as usize;
            let piece = pieces[number].location.get();
            let mut page = self.medium.bytes(self.places(piece)[0], PAGE);
            let used: Vec<usize> = (16..PAGE_BYTES)
                .step_by(16)
                .filter(|at| page[*at..*at + 8] != [0; 8])
                .collect();
            if what == 1 {
                let at = used[self.rng.below(used.len() as u64) as usize];
                self.spoil(&mut page[at..at + 16]);
            } else {
                let at = used[self.rng.below(used.len() as u64) as usize];
                let place = u64::from_le_bytes(page[at..at + 8].try_into().unwrap());
                let mut inner = self.medium.bytes(self.places(place)[0], PAGE);
                // Where something is, more often than in what is empty.
                let full: Vec<usize> = (16..PAGE_BYTES).filter(|at| inner[*at] != 0).collect();
                if self.rng.once_in(3) || full.is_empty() {
                    self.spoil(&mut inner[4..]);
                } else {
                    for _ in 0..1 + self.rng.below(3) {
                        let at = full[self.rng.below(full.len() as u64) as usize];
                        self.spoil(&mut inner[at..at + 1]);
                    }
                }
                self.write(place, &inner);
                page[at + 8..at + 12].copy_from_slice(&crc32c(&inner).to_le_bytes());
            }
            self.write(piece, &page);
            let before: usize = self.parsed.pieces[..table].iter().map(Vec::len).sum();
            let pointer = 48 + self.parsed.chunks.len() * 16 + (before + number) * 16;
            root[pointer + 8..pointer + 12].copy_from_slice(&crc32c(&page).to_le_bytes());
        }
        self.superblock.root_crc = crc32c(&root);
        root.resize(root.len().next_multiple_of(PAGE_BYTES), 0);
        let layout = self.superblock.layout;
        let page = self.superblock.encode();
        for (copy, superblock_at) in SUPERBLOCK_AT.into_iter().enumerate() {
            let at = layout.root_at(copy, self.superblock.generation);
            self.medium.overwrite(at, &root);
            self.medium.overwrite(superblock_at, &page);
        }
        self.medium
    }
}

async fn use_volume(volume: &Volume<MediumDisk>, buffer: Buffer) {
    let blocks = volume.info().blocks;
    for at in [0, 5, 250, 700, blocks.saturating_sub(3)] {
        let buffers = std::slice::from_ref(&buffer);
        let _ = volume.read(Lba(at), buffers).await;
        let _ = volume.write(Lba(at), buffers, Durability::Cached).await;
    }
    let _ = volume.deallocate(Lba(6), 300.min(blocks)).await;
    let keep = volume.write_zeroes(Lba(0), 9, Space::Keep, Durability::Cached);
    let _ = keep.await;
}

/// Does all that can be done with a pool, whatever comes of it.
fn try_all(medium: &Medium) -> Result<(), PoolError> {
    let node = Node::import(medium)?;
    let _ = node.run(|pool| async move { pool.check().await });
    let ids: Vec<VolumeId> = node.pool.volumes().iter().map(|(id, _)| *id).collect();
    for (number, id) in ids.into_iter().enumerate() {
        let buffer = node.core.buffer(3 * 512);
        let identity = |name: &str| Identity {
            name: format!("{name}{number}"),
            uuid: [number as u8; 16],
        };
        let (first, second) = (identity("new"), identity("clone"));
        let _ = node.run(move |pool| async move {
            let _ = pool.volume_space(id).await;
            if let Ok(volume) = pool.open(id) {
                use_volume(&volume, buffer.clone()).await;
            }
            pool.snapshot(&[(id, first)]).await?;
            let clone = pool.clone_volume(id, &second).await?;
            use_volume(&pool.open(clone)?, buffer).await;
            let mut inflate = pool.inflate(clone)?;
            for _ in 0..20 {
                if inflate.step().await?.is_none() {
                    break;
                }
            }
            drop(inflate);
            pool.resize(clone, 100, true).await?;
            pool.delete(id).await
        });
    }
    // Where something contradicts itself, the pool stops; it does not hang.
    let _ = node.run(|pool| async move { pool.settled().await });
    let _ = node.run(|pool| async move { pool.close().await });
    Ok(())
}

fn count(most: u64) -> u64 {
    match std::env::var_os("COREBAY_LONG") {
        Some(_) => most * 10,
        None => most,
    }
}

#[test]
fn forged_pages_are_refused_or_harmless() {
    let base = pool();
    let (mut refused, mut opened) = (0, 0);
    for seed in 0..count(150) {
        let medium = Forger::new(&base, seed).forge();
        println!("seed {seed}");
        match try_all(&medium) {
            Ok(()) => opened += 1,
            Err(PoolError::Corrupt(_)) => refused += 1,
            Err(error) => panic!("seed {seed}: {error}"),
        }
    }
    assert!(refused > 5 && opened > 5, "{refused} {opened}");
}

/// A pool whose journal holds all kinds of records, and where its batches lie.
fn with_journal() -> (Medium, Vec<u64>) {
    let medium = pool();
    let node = Node::import(&medium).unwrap();
    let find = |name| node.pool.find(name).unwrap();
    let (id, snapshot) = (find("v"), find("s"));
    let volume = node.open(id);
    node.write(&volume, 900, 30, 7, Durability::Cached).unwrap();
    node.deallocate(&volume, 3, 40);
    node.create_volume("w", 77);
    node.snapshot(id, "u");
    drop(volume);
    node.run(move |pool| async move {
        pool.roll_back(id, snapshot).await?;
        pool.rename(id, "renamed").await?;
        pool.resize(id, 4000, false).await?;
        pool.set_attributes(id, &[1, 2, 3]).await?;
        pool.delete(snapshot).await
    })
    .unwrap();
    node.settle();
    let superblock = Superblock::parse(&medium.bytes(SUPERBLOCK_AT[0], PAGE)).unwrap();
    let layout = superblock.layout;
    let batches = (0..layout.journal_pages()).filter(|page| {
        let bytes = medium.bytes(layout.journal_at(0) + page * PAGE, PAGE);
        let batch = Batch::parse(&bytes, superblock.uuid);
        batch.is_some_and(|batch| batch.sequence >= superblock.journal_sequence)
    });
    let batches = batches.collect();
    (medium, batches)
}

/// Makes a batch's checksum right again.
fn sign(page: &mut [u8]) {
    let len = u32::from_le_bytes(page[32..36].try_into().unwrap()) as usize;
    page[4..8].fill(0);
    let crc = crc32c(&page[..len.min(PAGE_BYTES)]).to_le_bytes();
    page[4..8].copy_from_slice(&crc);
}

#[test]
fn forged_records_are_refused_or_harmless() {
    let (base, batches) = with_journal();
    assert!(batches.len() > 4, "{batches:?}");
    let superblock = Superblock::parse(&base.bytes(SUPERBLOCK_AT[0], PAGE)).unwrap();
    let layout = superblock.layout;
    let (mut refused, mut opened) = (0, 0);
    for seed in 0..count(150) {
        let medium = base.copy(seed);
        let mut rng = Rng::from_seed(seed);
        let page = batches[rng.below(batches.len() as u64) as usize] * PAGE;
        let mut bytes = medium.bytes(layout.journal_at(0) + page, PAGE);
        let len = u32::from_le_bytes(bytes[32..36].try_into().unwrap()) as usize;
        for _ in 0..1 + rng.below(3) {
            let within = (len - BATCH_HEADER_BYTES).max(1) as u64;
            let at = BATCH_HEADER_BYTES + rng.below(within) as usize;
            bytes[at] = match rng.below(4) {
                0 => rng.below(256) as u8,
                1 => rng.below(20) as u8,
                2 => 0xff,
                _ => bytes[at] ^ 1 << rng.below(8),
            };
        }
        sign(&mut bytes);
        for copy in 0..COPIES {
            medium.overwrite(layout.journal_at(copy) + page, &bytes);
        }
        println!("seed {seed}, page {page}");
        match try_all(&medium) {
            Ok(()) => opened += 1,
            // A record may take all the space that the next checkpoint needs.
            Err(
                PoolError::Corrupt(_)
                | PoolError::WrongDisk(_)
                | PoolError::OtherBlocks { .. }
                | PoolError::NoSpace,
            ) => {
                refused += 1;
            }
            Err(error) => panic!("seed {seed}: {error}"),
        }
    }
    assert!(refused > 5 && opened > 5, "{refused} {opened}");
}

#[test]
fn a_record_of_an_unknown_kind_is_told_and_not_passed_over() {
    let (base, batches) = with_journal();
    let superblock = Superblock::parse(&base.bytes(SUPERBLOCK_AT[0], PAGE)).unwrap();
    let layout = superblock.layout;
    // Also the last one, behind which nothing tells that it is missing.
    for page in [batches[0], batches[batches.len() - 1]] {
        let medium = base.copy(1);
        let mut bytes = medium.bytes(layout.journal_at(0) + page * PAGE, PAGE);
        bytes[BATCH_HEADER_BYTES] = 200;
        sign(&mut bytes);
        for copy in 0..COPIES {
            medium.overwrite(layout.journal_at(copy) + page * PAGE, &bytes);
        }
        let found = Node::import(&medium).map(|_| ());
        assert!(matches!(found, Err(PoolError::Corrupt(_))), "{found:?}");
    }
}

#[test]
fn any_bytes_are_a_record_or_none() {
    let mut rng = Rng::from_seed(3);
    for _ in 0..20_000 {
        let len = rng.below(120) as usize;
        let mut bytes: Vec<u8> = (0..len).map(|_| rng.below(256) as u8).collect();
        if len > 4 {
            bytes[0] = rng.below(22) as u8;
            bytes[2] = rng.below(100) as u8;
            bytes[3] = 0;
        }
        if let Some((record, rest)) = Record::parse(&bytes) {
            assert_eq!(record.encoded_len() + rest.len(), bytes.len(), "{record:?}");
        }
    }
}

/// A pool of more than one page of counts, of which the second was never written.
fn with_unused_counts() -> Medium {
    let medium = Medium::new(BlockSize::B512, 200 << 20, false, 1);
    drop(Node::create(&medium));
    medium
}

fn refused(forger: &Forger, root: &[u8]) -> PoolError {
    let mut superblock = forger.superblock.clone();
    superblock.root_crc = crc32c(root);
    superblock.root_len = u32::try_from(root.len()).unwrap();
    let mut padded = root.to_vec();
    padded.resize(root.len().next_multiple_of(PAGE_BYTES), 0);
    for (copy, superblock_at) in SUPERBLOCK_AT.into_iter().enumerate() {
        let at = superblock.layout.root_at(copy, superblock.generation);
        forger.medium.overwrite(at, &padded);
        forger.medium.overwrite(superblock_at, &superblock.encode());
    }
    Node::import(&forger.medium).map(drop).unwrap_err()
}

#[test]
fn counts_that_were_never_written_are_of_free_extents_alone() {
    let forger = Forger::new(&with_unused_counts(), 1);
    let mut parsed = forger.parsed.clone();
    let piece = parsed.pieces[1][0].location.get();
    let mut page = forger.medium.bytes(forger.places(piece)[0], PAGE);
    let second = 16 + 16;
    assert_eq!(page[second..second + 8], [0; 8], "it has no place");
    assert_ne!(page[second + 12..second + 16], [0; 4]);
    page[second + 12..second + 16].fill(0);
    forger.write(piece, &page);
    parsed.pieces[1][0].crc = crc32c(&page).into();
    let found = refused(&forger, &parsed.encode());
    assert_eq!(found, PoolError::Corrupt("the table of counts".into()));
}

#[test]
fn tables_have_no_more_pieces_than_there_are_places() {
    let forger = Forger::new(&pool(), 1);
    let mut parsed = forger.parsed.clone();
    let piece = parsed.pieces[0][0];
    let places = parsed.chunks.len() as u64 * forger.superblock.layout.pages_per_extent();
    let many = usize::try_from(places).unwrap();
    parsed.pieces[0] = vec![piece; many];
    parsed.lens[0] = u32::try_from(many * 255).unwrap();
    let found = refused(&forger, &parsed.encode());
    let what = "more pieces of tables than places for them";
    assert_eq!(found, PoolError::Corrupt(what.into()));
}

#[test]
fn a_journal_that_the_largest_batch_does_not_fit_in_is_refused() {
    let forger = Forger::new(&pool(), 1);
    let mut superblock = forger.superblock.clone();
    superblock.layout.journal_bytes = 80 << 10;
    let parsed = Superblock::parse(&superblock.encode());
    let what = "a superblock's fields";
    assert_eq!(parsed, Err(PoolError::Corrupt(what.into())));
}
