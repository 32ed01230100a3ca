//! The beds of the disks in `core`.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use corebay_core::{
    disk::{
        fault::{FaultDisk, Faults},
        file::{
            Caching, EngineKind, FileDisk, FileEngine, FileEngineOptions, FileMedium,
            FileMediumOptions,
        },
        null::{NullDisk, NullReads},
        ram::{RamDisk, RamMedium},
    },
    units::BlockSize,
};

use crate::{Bed, TestCore};

/// The bytes of every bed's medium.
pub const MEDIUM_BYTES: u64 = 256 << 20;

/// The depth of a file bed's engines: small, so that checks go beyond it.
const ENGINE_DEPTH: usize = 16;

/// A ram disk.
pub struct RamBed(Arc<RamMedium>);

impl RamBed {
    /// A fresh one.
    ///
    /// # Panics
    /// Where there is no memory for it.
    #[must_use]
    pub fn new(block_size: BlockSize) -> Self {
        let blocks = block_size.blocks_in(MEDIUM_BYTES);
        Self(RamMedium::new(block_size, blocks).expect("memory"))
    }
}

impl Bed for RamBed {
    type Disk = RamDisk;

    fn open(&self, core: &TestCore) -> RamDisk {
        RamDisk::new(self.0.clone(), &core.reactor)
    }
}

/// A ram disk with a fault disk over it that has no faults.
pub struct FaultBed(RamBed);

impl FaultBed {
    /// A fresh one.
    #[must_use]
    pub fn new(block_size: BlockSize) -> Self {
        Self(RamBed::new(block_size))
    }
}

impl Bed for FaultBed {
    type Disk = FaultDisk<RamDisk>;

    fn open(&self, core: &TestCore) -> Self::Disk {
        FaultDisk::new(self.0.open(core), Faults::new(0), &core.reactor)
    }
}

/// A null disk. Only some checks apply: it keeps nothing.
pub struct NullBed(BlockSize);

impl NullBed {
    /// One.
    #[must_use]
    pub fn new(block_size: BlockSize) -> Self {
        Self(block_size)
    }
}

impl Bed for NullBed {
    type Disk = NullDisk;

    fn open(&self, _core: &TestCore) -> NullDisk {
        NullDisk::new(self.0, self.0.blocks_in(MEDIUM_BYTES), NullReads::Zeroes)
    }
}

/// A file, or a block device.
pub struct FileBed {
    medium: Option<Arc<FileMedium>>,
    path: PathBuf,
    options: FileMediumOptions,
    kind: EngineKind,
    /// The file's folder, removed with the bed.
    _folder: Option<tempfile::TempDir>,
}

impl FileBed {
    /// A new sparse file in a folder of its own, reached by this kind of engine.
    ///
    /// # Panics
    /// Where it cannot be made.
    #[must_use]
    pub fn new(block_size: BlockSize, kind: EngineKind, caching: Caching) -> Self {
        let folder = tempfile::tempdir().expect("a folder for the file");
        let options = FileMediumOptions {
            block_size,
            bytes: Some(MEDIUM_BYTES),
            create: true,
            caching,
        };
        let path = folder.path().join("disk");
        Self {
            medium: Some(FileMedium::open(&path, options).expect("the file")),
            path,
            options,
            kind,
            _folder: Some(folder),
        }
    }

    /// A block device that may be overwritten.
    ///
    /// # Panics
    /// Where it cannot be opened.
    #[must_use]
    pub fn device(path: &Path, block_size: BlockSize, kind: EngineKind) -> Self {
        let options = FileMediumOptions::new(block_size);
        Self {
            medium: Some(FileMedium::open(path, options).expect("the device")),
            path: path.to_owned(),
            options,
            kind,
            _folder: None,
        }
    }

    /// The engine of a core, as the bed's disks use it.
    ///
    /// # Panics
    /// Where this kind is not to be had.
    #[must_use]
    pub fn engine(&self, core: &TestCore) -> std::rc::Rc<FileEngine> {
        let options = FileEngineOptions {
            kind: self.kind,
            depth: ENGINE_DEPTH,
            ..FileEngineOptions::default()
        };
        FileEngine::start(&core.reactor, &core.pool, options).expect("an engine")
    }

    /// The medium.
    ///
    /// # Panics
    /// Never between two calls of [`Bed::reopen`].
    #[must_use]
    pub fn medium(&self) -> &Arc<FileMedium> {
        self.medium.as_ref().expect("opened")
    }
}

impl Bed for FileBed {
    type Disk = FileDisk;

    fn open(&self, core: &TestCore) -> FileDisk {
        FileDisk::open(&self.engine(core), self.medium())
    }

    fn reopen(&mut self) -> bool {
        self.medium = None;
        self.medium = Some(FileMedium::open(&self.path, self.options).expect("the file again"));
        true
    }

    fn depth(&self) -> Option<usize> {
        Some(ENGINE_DEPTH)
    }
}
