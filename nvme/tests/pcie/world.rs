//! One thread with a driver, an emulated controller and a clock of its own.

use std::{cell::RefCell, future::Future, pin::Pin, rc::Rc, sync::Arc, time::Duration};

use corebay_core::{
    arena::{Arena, ArenaMemory},
    buffer::{Buffer, BufferPool},
    disk::{Disk, DiskError, Durability},
    dma::DmaRegion,
    reactor::Reactor,
    units::{CoreId, Lba, Time},
};
use corebay_nvme::{
    emulated::{Emulated, EmulatedDevice, EmulatedOptions, EmulatedRegisters},
    pcie::{
        BringUpError, Controller, DmaWindow, DmaWindows, Drive, DriverOptions, NvmeDisk, Queue,
    },
};

/// The time that a turn takes.
pub const TURN: Duration = Duration::from_micros(100);

/// The turns after which what has not ended is taken to hang.
pub const TURNS_MAX: usize = 2_000_000;

const POOL_BYTES: usize = 8 << 20;

/// One core.
pub struct World {
    pub reactor: Reactor,
    pub emulated: Emulated,
    pub pool: BufferPool,
    pub window: DmaWindow,
    arena: RefCell<Arena>,
    now: RefCell<Time>,
}

/// A task's value, once it has ended.
pub struct Outcome<T>(Rc<RefCell<Option<T>>>);

impl<T> Outcome<T> {
    pub fn is_there(&self) -> bool {
        self.0.borrow().is_some()
    }

    pub fn take(&self) -> T {
        self.0.borrow_mut().take().expect("the task has ended")
    }
}

/// Driver options with short times.
pub fn quick() -> DriverOptions {
    DriverOptions {
        queues: 2,
        entries: 32,
        io_timeout: Duration::from_millis(100),
        abort_timeout: Duration::from_millis(50),
        admin_timeout: Duration::from_millis(200),
        function_reset_timeout: Duration::from_secs(1),
        health_interval: Duration::from_millis(5),
        host_identifier: *b"host identifier!",
        ..DriverOptions::default()
    }
}

impl World {
    pub fn new(options: EmulatedOptions) -> Self {
        let mut arena = Arena::lazy(POOL_BYTES + (24 << 20)).expect("memory");
        let region = arena.take(POOL_BYTES).expect("the arena is that large");
        let emulated = Emulated::new(options);
        let window = emulated.map(&arena.memory());
        let reactor = Reactor::new(CoreId(0), 512, Time(0));
        reactor.add_source(Rc::new(emulated.clone()));
        Self {
            pool: BufferPool::new(region, 512),
            reactor,
            emulated,
            window,
            arena: RefCell::new(arena),
            now: RefCell::new(Time(0)),
        }
    }

    pub fn memory(&self) -> ArenaMemory {
        self.arena.borrow().memory()
    }

    pub fn now(&self) -> Time {
        *self.now.borrow()
    }

    pub fn turn(&self) -> usize {
        let now = self.now().plus(TURN);
        *self.now.borrow_mut() = now;
        self.reactor.poll_once(now)
    }

    pub fn turn_for(&self, time: Duration) {
        let end = self.now().plus(time);
        while self.now() < end {
            self.turn();
        }
    }

    pub fn turn_until(&self, what: &str, mut done: impl FnMut() -> bool) {
        for _ in 0..TURNS_MAX {
            if done() {
                return;
            }
            self.turn();
        }
        panic!("{what} did not happen");
    }

    pub fn spawn<T: 'static>(&self, task: impl Future<Output = T> + 'static) -> Outcome<T> {
        let outcome = Outcome(Rc::new(RefCell::new(None)));
        let into = outcome.0.clone();
        let task: Pin<Box<dyn Future<Output = ()>>> = Box::pin(async move {
            let value = task.await;
            *into.borrow_mut() = Some(value);
        });
        assert!(self.reactor.spawn(task).is_ok(), "no task slot is free");
        outcome
    }

    pub fn run<T: 'static>(&self, task: impl Future<Output = T> + 'static) -> T {
        let outcome = self.spawn(task);
        self.turn_until("the end of a task", || outcome.is_there());
        outcome.take()
    }

    pub fn bring_up(
        &self,
        options: DriverOptions,
    ) -> Result<Controller<EmulatedDevice>, BringUpError> {
        self.bring_up_on(&self.emulated, options)
    }

    pub fn bring_up_on(
        &self,
        emulated: &Emulated,
        options: DriverOptions,
    ) -> Result<Controller<EmulatedDevice>, BringUpError> {
        let outcome = self.start_on(emulated, options);
        self.turn_until("the end of a bring-up", || outcome.is_there());
        outcome.take()
    }

    pub fn start_bring_up(
        &self,
        options: DriverOptions,
    ) -> Outcome<Result<Controller<EmulatedDevice>, BringUpError>> {
        self.start_on(&self.emulated, options)
    }

    fn start_on(
        &self,
        emulated: &Emulated,
        options: DriverOptions,
    ) -> Outcome<Result<Controller<EmulatedDevice>, BringUpError>> {
        let bytes = options.memory_bytes();
        let region = self.arena.borrow_mut().take(bytes);
        let memory = DmaRegion::new(region.expect("memory for the queues")).expect("aligned");
        let (device, reactor, window) = (emulated.device(), self.reactor.clone(), self.window);
        self.spawn(
            async move { Controller::bring_up(device, &reactor, memory, window, options).await },
        )
    }

    pub fn open(&self, drive: &Arc<Drive<EmulatedRegisters>>) -> Rc<Queue<EmulatedRegisters>> {
        let windows = DmaWindows::new(&[self.window]);
        Queue::open(drive, &self.reactor, windows).expect("a free queue pair")
    }

    pub fn buffer(&self, bytes: usize, content: u8) -> Buffer {
        let mut buffer = self.pool.try_allocate(bytes).expect("a free buffer");
        buffer.bytes_mut().fill(content);
        buffer
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.reactor.tear_down();
    }
}

/// A world with a drive that was brought up, and its first namespace opened.
pub struct Bench {
    pub disk: Rc<NvmeDisk<EmulatedRegisters>>,
    pub queue: Rc<Queue<EmulatedRegisters>>,
    pub controller: Controller<EmulatedDevice>,
    pub world: World,
}

impl Bench {
    pub fn new(options: EmulatedOptions) -> Self {
        Self::with(options, quick())
    }

    pub fn with(options: EmulatedOptions, driver: DriverOptions) -> Self {
        let world = World::new(options);
        let controller = world.bring_up(driver).expect("a controller that comes up");
        let queue = world.open(controller.drive());
        let disk = Rc::new(queue.disk(1).expect("namespace 1"));
        Self {
            disk,
            queue,
            controller,
            world,
        }
    }

    pub fn emulated(&self) -> &Emulated {
        &self.world.emulated
    }

    /// With its first namespace opened anew.
    pub fn reopened(self) -> Self {
        let disk = Rc::new(self.queue.disk(1).expect("namespace 1"));
        Self { disk, ..self }
    }

    pub fn start_write(
        &self,
        lba: u64,
        content: u8,
        blocks: usize,
        durability: Durability,
    ) -> Outcome<Result<(), DiskError>> {
        let bytes = blocks * self.disk.info().block_size.bytes();
        let buffer = self.world.buffer(bytes, content);
        let disk = self.disk.clone();
        self.world.spawn(async move {
            disk.write(Lba(lba), std::slice::from_ref(&buffer), durability)
                .await
        })
    }

    pub fn write(&self, lba: u64, content: u8, blocks: usize) -> Result<(), DiskError> {
        let write = self.start_write(lba, content, blocks, Durability::Cached);
        self.world.turn_until("a write's end", || write.is_there());
        write.take()
    }

    /// The first byte of each block.
    pub fn read(&self, lba: u64, blocks: usize) -> Result<Vec<u8>, DiskError> {
        let size = self.disk.info().block_size.bytes();
        let buffer = self.world.buffer(blocks * size, 0xee);
        let disk = self.disk.clone();
        self.world.run(async move {
            disk.read(Lba(lba), std::slice::from_ref(&buffer)).await?;
            Ok(buffer.bytes().chunks(size).map(|block| block[0]).collect())
        })
    }

    pub fn on_disk<T: 'static, F: Future<Output = T> + 'static>(
        &self,
        call: impl FnOnce(Rc<NvmeDisk<EmulatedRegisters>>) -> F,
    ) -> T {
        self.world.run(call(self.disk.clone()))
    }

    /// Waits until nothing is in flight, and checks that all buffers are free.
    pub fn settle(&self) {
        let pool = &self.world.pool;
        self.world.turn_until("all buffers' return", || {
            pool.free_bytes() == pool.total_bytes()
        });
    }
}
