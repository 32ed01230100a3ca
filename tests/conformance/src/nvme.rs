//! The bed of the user-space NVMe driver over an emulated controller.
//!
//! A thread of its own keeps the controller, as in the appliance, and lets the emulated device move;
//! the cores under test let it move too. Everything but the keeping of the controller is on those.

use std::{
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::JoinHandle,
};

use corebay_core::{
    arena::Arena,
    dma::DmaRegion,
    reactor::{MachineClock, PollSource, Reactor},
    units::{BlockSize, CoreId, Time},
};
use corebay_nvme::{
    emulated::{Emulated, EmulatedNamespace, EmulatedOptions, EmulatedRegisters},
    pcie::{Controller, DmaWindows, Drive, DriverOptions, NvmeDisk, Queue},
};

use crate::{Bed, TestCore, beds::MEDIUM_BYTES};

/// Entries of an I/O queue: few, so that checks go beyond it.
const ENTRIES: u16 = 17;

/// I/O queue pairs: more than any check has cores.
const QUEUES: u16 = 4;

/// What the controller is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NvmeManner {
    /// A volatile write cache, PRP lists, all optional commands.
    WriteBack,
    /// No volatile write cache; doorbells in memory.
    WriteThrough,
    /// SGLs.
    Sgl,
    /// No optional command at all, and small transfers.
    Sparing,
}

/// The namespace of an emulated controller.
pub struct NvmeBed {
    emulated: Emulated,
    drive: Arc<Drive<EmulatedRegisters>>,
    stop: Arc<AtomicBool>,
    keeper: Option<JoinHandle<()>>,
    turned_by_cores: bool,
}

impl NvmeBed {
    /// The same bed, whose controller moves on the keeper's thread alone: what a core does is then
    /// the driver's doing.
    #[must_use]
    pub fn turned_by_keeper(mut self) -> Self {
        self.turned_by_cores = false;
        self
    }

    /// A fresh one.
    ///
    /// # Panics
    /// Where the controller does not come up.
    #[must_use]
    pub fn new(block_size: BlockSize, manner: NvmeManner) -> Self {
        let emulated = Emulated::new(options(block_size, manner));
        let (stop, (give, take)) = (Arc::new(AtomicBool::new(false)), mpsc::channel());
        let (of_keeper, stopping) = (emulated.clone(), stop.clone());
        #[allow(clippy::disallowed_methods, reason = "this is the test's environment")]
        let keeper = std::thread::spawn(move || keep(&of_keeper, &stopping, &give));
        Self {
            emulated,
            drive: take.recv().expect("a controller that comes up"),
            stop,
            keeper: Some(keeper),
            turned_by_cores: true,
        }
    }
}

fn options(block_size: BlockSize, manner: NvmeManner) -> EmulatedOptions {
    let plain = EmulatedOptions {
        namespaces: vec![EmulatedNamespace::new(
            block_size,
            block_size.blocks_in(MEDIUM_BYTES),
        )],
        ..EmulatedOptions::default()
    };
    match manner {
        NvmeManner::WriteBack => plain,
        NvmeManner::WriteThrough => EmulatedOptions {
            volatile_cache: false,
            shadow_doorbells: true,
            ..plain
        },
        NvmeManner::Sgl => EmulatedOptions {
            sgl: true,
            mdts: 0,
            ..plain
        },
        NvmeManner::Sparing => EmulatedOptions {
            oncs: 0,
            mdts: 7,
            ..plain
        },
    }
}

/// Keeps the controller until it is told to stop.
fn keep(
    emulated: &Emulated,
    stop: &AtomicBool,
    give: &mpsc::Sender<Arc<Drive<EmulatedRegisters>>>,
) {
    let clock = MachineClock::new();
    let reactor = Reactor::new(CoreId(0), 16, clock.now());
    reactor.add_source(Rc::new(emulated.clone()));
    let options = DriverOptions {
        queues: QUEUES,
        entries: ENTRIES,
        ..DriverOptions::default()
    };
    let bytes = options.memory_bytes();
    let mut arena = Arena::lazy(bytes).expect("memory for the queues");
    let window = emulated.map(&arena.memory());
    let memory = DmaRegion::new(arena.take(bytes).expect("just made")).expect("aligned");
    let (of_task, device, give) = (reactor.clone(), emulated.device(), give.clone());
    let task = async move {
        let up = Controller::bring_up(device, &of_task, memory, window, options).await;
        // Whoever asked says what a failure means.
        if let Ok(controller) = up {
            let _ = give.send(controller.drive().clone());
        }
    };
    assert!(reactor.spawn(Box::pin(task)).is_ok());
    while !stop.load(Ordering::Relaxed) {
        if reactor.poll_once(clock.now()) == 0 {
            std::thread::yield_now();
        }
    }
    reactor.tear_down();
}

impl Drop for NvmeBed {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(keeper) = self.keeper.take() {
            let _ = keeper.join();
        }
    }
}

/// The controller as a source of a core under test.
struct Turned(Emulated);

impl PollSource for Turned {
    fn poll(&self, now: Time) -> usize {
        self.0.poll(now)
    }
}

impl Bed for NvmeBed {
    type Disk = NvmeDisk<EmulatedRegisters>;

    fn open(&self, core: &TestCore) -> Self::Disk {
        let windows = DmaWindows::new(&[self.emulated.map(&core.pool.arena_memory())]);
        if self.turned_by_cores {
            let turned = Turned(self.emulated.clone());
            core.reactor.add_source(Rc::new(turned));
        }
        let queue = Queue::open(&self.drive, &core.reactor, windows);
        let queue = queue.expect("a free queue pair");
        queue.disk(1).expect("the namespace")
    }

    fn depth(&self) -> Option<usize> {
        Some(usize::from(ENTRIES) - 1)
    }
}
