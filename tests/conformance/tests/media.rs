//! Opening files and block devices as disks, and what happens when they fail.

use std::{
    fs::File,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
    rc::Rc,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use corebay_conformance::{
    TestCore,
    beds::FileBed,
    or_skip, run_every_check,
    scratch::{LoopDevice, ScratchMount, run},
};
use corebay_core::{
    disk::{
        Disk, DiskError, Durability,
        file::{
            Caching, EngineKind, FileDisk, FileEngine, FileEngineOptions, FileErrorReason,
            FileMedium, FileMediumOptions, default_block_size,
        },
    },
    reactor::{self, MachineClock},
    units::{BlockSize, Lba},
};

const MIB: u64 = 1 << 20;

fn options(block_size: BlockSize) -> FileMediumOptions {
    FileMediumOptions::new(block_size)
}

fn sized(bytes: u64) -> FileMediumOptions {
    FileMediumOptions {
        bytes: Some(bytes),
        create: true,
        ..options(BlockSize::B4096)
    }
}

fn reason(path: &Path, options: FileMediumOptions) -> FileErrorReason {
    let error = FileMedium::open(path, options).expect_err("it cannot be opened");
    println!("{error}");
    error.reason
}

struct Bench {
    core: TestCore,
    disk: Rc<FileDisk>,
}

impl Bench {
    fn new(medium: &Arc<FileMedium>, kind: EngineKind) -> Self {
        let core = TestCore::single();
        let options = FileEngineOptions {
            kind,
            ..FileEngineOptions::default()
        };
        let engine = FileEngine::start(&core.reactor, &core.pool, options).unwrap();
        let disk = Rc::new(FileDisk::open(&engine, medium));
        Self { core, disk }
    }

    fn write(&self, lba: u64, bytes: usize, durability: Durability) -> Result<(), DiskError> {
        let (disk, buffer) = (self.disk.clone(), self.core.buffer(bytes));
        self.core.run(async move {
            let buffers = std::slice::from_ref(&buffer);
            disk.write(Lba(lba), buffers, durability).await
        })
    }

    fn read(&self, lba: u64) -> Result<u8, DiskError> {
        let bytes = self.disk.info().block_size.bytes();
        let (disk, buffer) = (self.disk.clone(), self.core.buffer(bytes));
        self.core.run(async move {
            disk.read(Lba(lba), std::slice::from_ref(&buffer)).await?;
            Ok(buffer.bytes()[0])
        })
    }

    fn flush(&self) -> Result<(), DiskError> {
        let disk = self.disk.clone();
        self.core.run(async move { disk.flush().await })
    }
}

#[test]
fn a_missing_file_is_made_only_when_asked_for_and_is_sparse() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    let missing = reason(&path, options(BlockSize::B4096));
    assert!(matches!(missing, FileErrorReason::Missing));
    let medium = FileMedium::open(&path, sized(1 << 40)).unwrap();
    assert_eq!(medium.info().blocks, 1 << 28);
    assert!(medium.is_direct());
    drop(medium);
    let taken = std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(&path).unwrap());
    assert!(taken * 512 < MIB, "{taken} sectors");
    // What exists is used whole.
    let medium = FileMedium::open(&path, sized(MIB)).unwrap();
    assert_eq!(medium.info().bytes(), 1 << 40);
}

#[test]
fn sizes_that_do_not_fit_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    File::create(&path).unwrap().set_len(5120).unwrap();
    let small = reason(&path, sized(MIB));
    assert!(matches!(
        small,
        FileErrorReason::TooSmall { bytes: 5120, needed } if needed == MIB
    ));
    let ragged = reason(&path, options(BlockSize::B4096));
    assert!(matches!(
        ragged,
        FileErrorReason::NotWholeBlocks {
            bytes: 5120,
            block: 4096
        }
    ));
    assert!(FileMedium::open(&path, options(BlockSize::B512)).is_ok());
    File::create(&path).unwrap();
    let empty = reason(&path, options(BlockSize::B512));
    assert!(matches!(empty, FileErrorReason::Empty));
    // A start that was cut off between making the file and sizing it is made good.
    assert!(FileMedium::open(&path, sized(MIB)).is_ok());
}

#[test]
fn what_is_no_disk_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let no_disk = reason(folder.path(), options(BlockSize::B512));
    assert!(matches!(no_disk, FileErrorReason::NotADisk));
    let no_disk = reason(Path::new("/dev/null"), options(BlockSize::B512));
    assert!(matches!(no_disk, FileErrorReason::NotADisk));
    let nowhere = folder.path().join("no/such/folder/disk");
    assert!(matches!(
        reason(&nowhere, sized(MIB)),
        FileErrorReason::System { .. }
    ));
}

#[test]
fn a_file_is_one_disk_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    let first = FileMedium::open(&path, sized(MIB)).unwrap();
    let error = FileMedium::open(&path, sized(MIB)).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("; name it once only, or another file"),
        "{error}"
    );
    let FileErrorReason::Locked { holder } = error.reason else {
        panic!("it is locked");
    };
    assert_eq!(holder.map(|holder| holder.pid), Some(std::process::id()));
    drop(first);
    assert!(FileMedium::open(&path, sized(MIB)).is_ok());
}

/// Not a test by itself: the other process of the one below.
#[test]
fn other_process() {
    let Some(path) = std::env::var_os("COREBAY_OTHER_PROCESS") else {
        return;
    };
    let medium = FileMedium::open(Path::new(&path), sized(MIB)).unwrap();
    let bench = Bench::new(&medium, EngineKind::Auto);
    bench.write(0, 1 << 18, Durability::Cached).unwrap();
    println!("\nwritten");
    loop {
        bench.write(0, 1 << 18, Durability::Cached).unwrap();
    }
}

#[test]
fn a_killed_process_lets_go_of_its_disk() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    let mut other = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "other_process", "--nocapture"])
        .env("COREBAY_OTHER_PROCESS", &path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(other.stdout.take().unwrap()).lines();
    let written = lines.map_while(Result::ok).any(|line| line == "written");
    assert!(written);
    let error = FileMedium::open(&path, sized(MIB)).unwrap_err();
    let remedy = format!("end that one (`kill {}`), or name another file", other.id());
    assert!(error.to_string().ends_with(&remedy), "{error}");
    let FileErrorReason::Locked { holder } = error.reason else {
        panic!("it is locked");
    };
    assert_eq!(holder.map(|holder| holder.pid), Some(other.id()));
    other.kill().unwrap();
    other.wait().unwrap();
    let medium = FileMedium::open(&path, sized(MIB)).unwrap();
    assert_eq!(Bench::new(&medium, EngineKind::Auto).read(0), Ok(0xa5));
}

#[test]
#[allow(
    clippy::disallowed_methods,
    reason = "another thread of the process is what this is about"
)]
fn a_disk_is_let_go_of_though_children_are_started() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    std::fs::write(folder.path().join("disk.bad"), "not a list").unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    // Until it becomes another program, a child has open what its parent had.
    let starter = std::thread::spawn({
        let stop = stop.clone();
        move || {
            while !stop.load(Ordering::Relaxed) {
                Command::new("true").status().unwrap();
            }
        }
    });
    let reasons: Vec<_> = (0..300).map(|_| reason(&path, sized(MIB))).collect();
    stop.store(true, Ordering::Relaxed);
    starter.join().unwrap();
    for reason in reasons {
        assert!(
            matches!(reason, FileErrorReason::BadBlockList { .. }),
            "{reason:?}"
        );
    }
}

#[test]
fn a_filesystem_without_direct_io_is_told() {
    let mount = or_skip!(ScratchMount::new("ramfs", "rw", Path::new("ramfs")));
    let path = mount.path().join("disk");
    let FileErrorReason::NoDirectIo { filesystem } = reason(&path, sized(MIB)) else {
        panic!("ramfs has no direct I/O");
    };
    assert_eq!(filesystem.as_deref(), Some("ramfs"));
    let medium = FileMedium::open(
        &path,
        FileMediumOptions {
            caching: Caching::DirectElseBuffered,
            ..sized(MIB)
        },
    )
    .unwrap();
    assert!(!medium.is_direct());
    for kind in [EngineKind::IoUring, EngineKind::Threads] {
        let bench = Bench::new(&medium, kind);
        assert_eq!(bench.write(3, 8192, Durability::Durable), Ok(()));
        assert_eq!(bench.read(4), Ok(0xa5));
    }
}

#[test]
fn a_full_filesystem_refuses_writes_and_goes_on_reading() {
    let mount = or_skip!(ScratchMount::tmpfs(2 * MIB));
    let path = mount.path().join("disk");
    for kind in [EngineKind::IoUring, EngineKind::Threads] {
        let medium = FileMedium::open(&path, sized(64 * MIB)).unwrap();
        let bench = Bench::new(&medium, kind);
        let whole = usize::try_from(MIB).unwrap();
        assert_eq!(bench.write(0, whole, Durability::Cached), Ok(()));
        let results: Vec<_> = (1..4)
            .map(|n| bench.write(n * 256, whole, Durability::Durable))
            .collect();
        assert!(results.contains(&Err(DiskError::NoSpace)), "{results:?}");
        assert_eq!(bench.read(100), Ok(0xa5));
        let disk = bench.disk.clone();
        let freed = bench
            .core
            .run(async move { disk.deallocate(Lba(0), 64 * 256).await });
        assert_eq!(freed, Ok(()));
        assert_eq!(bench.read(100), Ok(0));
        assert_eq!(bench.write(9000, whole, Durability::Cached), Ok(()));
        drop(bench);
        drop(medium);
        std::fs::remove_file(&path).unwrap();
    }
}

/// A device whose writes fail behind the page cache's back, as its own backing is full.
#[test]
fn a_failed_flush_is_not_forgotten() {
    let mount = or_skip!(ScratchMount::tmpfs(2 * MIB));
    let backing = mount.path().join("backing");
    File::create(&backing).unwrap().set_len(64 * MIB).unwrap();
    let device = or_skip!(LoopDevice::over(&backing, 512));
    let options = FileMediumOptions {
        caching: Caching::Buffered,
        ..options(BlockSize::B4096)
    };
    let medium = FileMedium::open(device.path(), options).unwrap();
    let bench = Bench::new(&medium, EngineKind::Auto);
    assert_eq!(bench.flush(), Ok(()));
    for n in 0..8 {
        let whole = usize::try_from(MIB).unwrap();
        assert_eq!(bench.write(n * 256, whole, Durability::Cached), Ok(()));
    }
    assert!(bench.flush().is_err());
    // The kernel has told, and would tell no more.
    assert_eq!(bench.flush(), Err(DiskError::WriteFault));
    let other = Bench::new(&medium, EngineKind::Threads);
    assert_eq!(other.flush(), Err(DiskError::WriteFault));
    drop((bench, other, medium));
    let medium = FileMedium::open(device.path(), options).unwrap();
    assert_eq!(Bench::new(&medium, EngineKind::Auto).flush(), Ok(()));
}

#[test]
fn a_device_that_cannot_be_read_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let backing = folder.path().join("backing");
    let file = File::create(&backing).unwrap();
    file.set_len(8 * MIB).unwrap();
    let device = or_skip!(LoopDevice::over(&backing, 512));
    let medium = FileMedium::open(device.path(), options(BlockSize::B512)).unwrap();
    file.set_len(MIB).unwrap();
    for kind in [EngineKind::IoUring, EngineKind::Threads] {
        let bench = Bench::new(&medium, kind);
        assert_eq!(bench.read(5), Ok(0));
        assert_eq!(bench.read(5 * 2048), Err(DiskError::UnrecoveredRead));
        assert_eq!(bench.read(5), Ok(0));
    }
}

#[test]
fn sectors_larger_than_a_block_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let backing = folder.path().join("backing");
    File::create(&backing).unwrap().set_len(8 * MIB).unwrap();
    let device = or_skip!(LoopDevice::over(&backing, 4096));
    assert!(matches!(
        reason(device.path(), options(BlockSize::B512)),
        FileErrorReason::UnitTooLarge {
            unit: 4096,
            block: 512
        }
    ));
    // The same of a filesystem on such a device.
    or_skip!(run(Command::new("mkfs.ext4").arg("-q").arg(device.path())));
    let mount = or_skip!(ScratchMount::new("ext4", "rw", device.path()));
    let path = mount.path().join("disk");
    let small = FileMediumOptions {
        block_size: BlockSize::B512,
        ..sized(MIB)
    };
    assert!(matches!(
        reason(&path, small),
        FileErrorReason::UnitTooLarge {
            unit: 4096,
            block: 512
        }
    ));
    assert!(FileMedium::open(&path, sized(MIB)).is_ok());
}

#[test]
fn what_stays_whole_is_told_of_devices_and_of_files_on_them() {
    let folder = tempfile::tempdir().unwrap();
    for (sector, size) in [(512, BlockSize::B512), (4096, BlockSize::B4096)] {
        let backing = folder.path().join(format!("{sector}.img"));
        File::create(&backing).unwrap().set_len(64 * MIB).unwrap();
        let device = or_skip!(LoopDevice::over(&backing, sector));
        let medium = FileMedium::open(device.path(), options(BlockSize::B4096)).unwrap();
        assert_eq!(medium.info().atomic_write_bytes as usize, sector);
        assert_eq!(medium.info().may_tear_blocks(), sector == 512);
        drop(medium);
        or_skip!(run(Command::new("mkfs.ext4").arg("-q").arg(device.path())));
        let mount = or_skip!(ScratchMount::new("ext4", "noatime", device.path()));
        let path = mount.path().join("a.img");
        assert_eq!(
            default_block_size(&path),
            size,
            "of a file that is to be made"
        );
        let medium = FileMedium::open(&path, sized(MIB)).unwrap();
        assert_eq!(medium.info().atomic_write_bytes as usize, sector);
        assert_eq!(default_block_size(&path), size);
    }
    let memory = or_skip!(ScratchMount::tmpfs(MIB));
    let path = memory.path().join("a.img");
    assert_eq!(default_block_size(&path), BlockSize::B4096);
}

#[test]
fn a_mounted_device_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let backing = folder.path().join("backing");
    File::create(&backing).unwrap().set_len(8 * MIB).unwrap();
    let device = or_skip!(LoopDevice::over(&backing, 512));
    or_skip!(run(Command::new("mkfs.ext4").arg("-q").arg(device.path())));
    let mount = or_skip!(ScratchMount::new("ext4", "rw", device.path()));
    let FileErrorReason::DeviceInUse { users } = reason(device.path(), options(BlockSize::B512))
    else {
        panic!("it is mounted");
    };
    assert_eq!(users, [format!("mounted on {}", mount.path().display())]);
}

#[test]
fn a_damaged_list_of_bad_blocks_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    let spoil = |lba| {
        let medium = FileMedium::open(&path, sized(MIB)).unwrap();
        let bench = Bench::new(&medium, EngineKind::Auto);
        let disk = bench.disk.clone();
        let spoiled = bench
            .core
            .run(async move { disk.write_uncorrectable(Lba(lba), 1).await });
        assert_eq!(spoiled, Ok(()));
    };
    spoil(3);
    spoil(9);
    let list = folder.path().join("disk.bad");
    let whole = std::fs::read(&list).unwrap();
    // The second change is in the first slot. Torn, it has never been.
    let mut torn = whole.clone();
    torn[8192] ^= 1;
    std::fs::write(&list, &torn).unwrap();
    let medium = FileMedium::open(&path, sized(MIB)).unwrap();
    let bench = Bench::new(&medium, EngineKind::Auto);
    assert_eq!(bench.read(3), Err(DiskError::UnrecoveredRead));
    assert_eq!(bench.read(9), Ok(0));
    drop((bench, medium));
    torn[16384] ^= 1;
    std::fs::write(&list, &torn).unwrap();
    assert!(matches!(
        reason(&path, sized(MIB)),
        FileErrorReason::BadBlockList { .. }
    ));
    std::fs::write(&list, &whole).unwrap();
    // For blocks of another size it is the same list.
    let small = FileMedium::open(&path, options(BlockSize::B512)).unwrap();
    let bench = Bench::new(&small, EngineKind::Auto);
    assert_eq!(bench.read(23), Ok(0));
    assert_eq!(bench.read(24), Err(DiskError::UnrecoveredRead));
    assert_eq!(bench.read(79), Err(DiskError::UnrecoveredRead));
    assert_eq!(bench.read(80), Ok(0));
}

/// Whoever holds it keeps the threads of [`gated`] from their work.
static GATE: Mutex<()> = Mutex::new(());

fn gated(name: String, body: Box<dyn FnOnce() + Send>) -> std::io::Result<JoinHandle<()>> {
    let waits = move || {
        drop(GATE.lock().unwrap());
        body();
    };
    std::thread::Builder::new().name(name).spawn(waits)
}

#[test]
fn a_core_goes_on_while_the_list_of_bad_blocks_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    let medium = FileMedium::open(&path, sized(MIB)).unwrap();
    let core = TestCore::single();
    let options = FileEngineOptions {
        kind: EngineKind::IoUring,
        spawn: gated,
        ..FileEngineOptions::default()
    };
    let engine = or_skip!(FileEngine::start(&core.reactor, &core.pool, options));
    let disk = Rc::new(FileDisk::open(&engine, &medium));
    let bench = Bench { core, disk };
    let closed = GATE.lock().unwrap();
    let spoil = |lba| {
        let disk = bench.disk.clone();
        let task = async move { disk.write_uncorrectable(Lba(lba), 1).await };
        bench.core.spawn(task)
    };
    let (first, second) = (spoil(3), spoil(5));
    for _ in 0..100 {
        assert_eq!(bench.read(7), Ok(0), "other commands go on");
    }
    assert!(!first.is_there() && !second.is_there());
    assert_eq!(bench.read(3), Ok(0), "nobody has been told yet");
    drop(closed);
    let both = || first.is_there() && second.is_there();
    bench.core.turn_until("the list is made", both);
    assert_eq!((first.take(), second.take()), (Ok(()), Ok(())));
    for (lba, outcome) in [
        (3, Err(DiskError::UnrecoveredRead)),
        (4, Ok(0)),
        (5, Err(DiskError::UnrecoveredRead)),
    ] {
        assert_eq!(bench.read(lba), outcome);
    }
    drop((bench, medium, engine));
    let again = Bench::new(
        &FileMedium::open(&path, sized(MIB)).unwrap(),
        EngineKind::Auto,
    );
    assert_eq!(again.read(5), Err(DiskError::UnrecoveredRead), "it is kept");
}

#[test]
fn a_list_of_bad_blocks_is_bounded() {
    // In memory, as every change of the list is made durable.
    let mount = or_skip!(ScratchMount::tmpfs(16 * MIB));
    let path = mount.path().join("disk");
    let medium = FileMedium::open(&path, sized(64 * MIB)).unwrap();
    let bench = Bench::new(&medium, EngineKind::IoUring);
    let spoil = |lba, blocks| {
        let disk = bench.disk.clone();
        let task = async move { disk.write_uncorrectable(Lba(lba), blocks).await };
        bench.core.run(task)
    };
    let most = (0..).find(|n| spoil(n * 2, 1) != Ok(())).unwrap();
    assert_eq!(most, 1020);
    assert_eq!(spoil(5000, 1), Err(DiskError::NoSpace));
    assert_eq!(bench.read(5000), Ok(0));
    // One range in the place of many makes room.
    assert_eq!(spoil(0, 100), Ok(()));
    assert_eq!(spoil(5000, 1), Ok(()));
    assert_eq!(bench.read(5000), Err(DiskError::UnrecoveredRead));
}

/// More at once than the submission ring holds.
#[test]
fn the_rest_waits_for_the_ring() {
    let folder = tempfile::tempdir().unwrap();
    let medium = FileMedium::open(&folder.path().join("disk"), sized(MIB)).unwrap();
    for kind in [EngineKind::IoUring, EngineKind::Threads] {
        let bench = Bench::new(&medium, kind);
        let reads: Vec<_> = (0..500)
            .map(|number| {
                let (disk, buffer) = (bench.disk.clone(), bench.core.buffer(4096));
                bench.core.spawn(async move {
                    let at = Lba(number % 256);
                    disk.read(at, std::slice::from_ref(&buffer)).await
                })
            })
            .collect();
        for read in reads {
            bench.core.turn_until("a read", || read.is_there());
            assert_eq!(read.take(), Ok(()));
        }
    }
}

/// A block device that every bed gets anew, its content zeroes.
#[test]
fn block_devices_conform() {
    let folder = tempfile::tempdir().unwrap();
    let backing = folder.path().join("backing");
    File::create(&backing).unwrap().set_len(256 * MIB).unwrap();
    let device = or_skip!(LoopDevice::over(&backing, 512));
    run_every_check!(|block_size| {
        let file = File::options().write(true).open(device.path()).unwrap();
        let how = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&file, how, 0, 256 * MIB).unwrap();
        drop(file);
        FileBed::device(device.path(), block_size, EngineKind::IoUring)
    });
}

/// A core that sleeps is woken by its file disks.
#[test]
fn completions_wake_a_sleeping_core() {
    for kind in [EngineKind::IoUring, EngineKind::Threads] {
        let folder = tempfile::tempdir().unwrap();
        let medium = FileMedium::open(&folder.path().join("disk"), sized(MIB)).unwrap();
        let Bench { core, disk } = Bench::new(&medium, kind);
        let (running, buffer) = (core.reactor.clone(), core.buffer(4096));
        let _ = core.spawn(async move {
            for number in 0..50 {
                let buffers = std::slice::from_ref(&buffer);
                let durability = Durability::Durable;
                let at = Lba(number % 16);
                disk.write(at, buffers, durability).await.expect("write");
                disk.read(at, buffers).await.expect("read");
                disk.flush().await.expect("flush");
                if number % 5 == 0 {
                    running.sleep(Duration::from_millis(1)).await;
                }
            }
            running.stop();
        });
        let clock = MachineClock::new();
        reactor::run(&core.reactor, clock, Some(Duration::ZERO));
        let counters = core.reactor.counters();
        println!("{kind:?}: {counters:?}");
        assert!(counters.sleeps > 50);
        assert!(counters.turns < 20_000, "it sleeps instead of spinning");
    }
}
