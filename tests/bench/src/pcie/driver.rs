//! Owns the driver's side: tasks that read or write over and over, on a reactor.

use std::{cell::Cell, rc::Rc};

use anyhow::{Result, anyhow, ensure};
use corebay_core::{
    arena::Arena,
    buffer::BufferPool,
    disk::{Disk, Durability},
    dma::DmaRegion,
    reactor::{MachineClock, Reactor},
    units::{CoreId, Lba},
};
use corebay_nvme::{
    emulated::{Emulated, EmulatedDevice},
    pcie::{Controller, DmaWindows, DriverOptions, Queue},
};

use super::{BLOCK, Load, MEMORY_BYTES, Places};

/// Turns within which a controller in memory comes up.
const TURNS_MAX: usize = 10_000_000;

/// A driver with its load.
pub struct Driver {
    reactor: Reactor,
    clock: MachineClock,
    completed: Rc<Cell<usize>>,
    _controller: Controller<EmulatedDevice>,
    _pool: Rc<BufferPool>,
}

impl Driver {
    /// Brings the controller up and starts the load.
    pub fn start(
        emulated: &Emulated,
        mut arena: Arena,
        load: Load,
        clock: MachineClock,
    ) -> Result<Self> {
        let reactor = Reactor::new(CoreId(0), 512, clock.now());
        let options = DriverOptions::default();
        let window = emulated.map(&arena.memory());
        let memory = arena.take(options.memory_bytes()).and_then(DmaRegion::new);
        let memory = memory.ok_or_else(|| anyhow!("too little memory for queues"))?;
        let region = arena.take(MEMORY_BYTES / 2);
        let region = region.ok_or_else(|| anyhow!("too little memory for buffers"))?;
        let pool = Rc::new(BufferPool::new(region, 512));
        let up = Rc::new(Cell::new(None));
        let (device, of_task, done) = (emulated.device(), reactor.clone(), up.clone());
        let bring_up = Box::pin(async move {
            let up = Controller::bring_up(device, &of_task, memory, window, options).await;
            done.set(Some(up));
        });
        ensure!(reactor.spawn(bring_up).is_ok(), "no task slot is free");
        let mut controller = None;
        for _ in 0..TURNS_MAX {
            emulated.poll(clock.now());
            reactor.poll_once(clock.now());
            controller = up.take();
            if controller.is_some() {
                break;
            }
        }
        let controller = controller.ok_or_else(|| anyhow!("the controller does not come up"))??;
        let windows = DmaWindows::new(&[window]);
        let queue = Queue::open(controller.drive(), &reactor, windows);
        let queue = queue.ok_or_else(|| anyhow!("no queue pair is free"))?;
        let completed = Rc::new(Cell::new(0));
        for worker in 0..load.depth {
            let disk = queue
                .disk(1)
                .ok_or_else(|| anyhow!("there is no namespace"))?;
            let buffer = pool.try_allocate(load.blocks as usize * BLOCK.bytes());
            let buffer = [buffer.ok_or_else(|| anyhow!("too little memory for buffers"))?];
            let completed = completed.clone();
            let mut places = Places::new(worker as u64);
            let task = async move {
                loop {
                    let at = Lba(places.next(load.blocks));
                    let ended = match load.write {
                        true => disk.write(at, &buffer, Durability::Cached).await,
                        false => disk.read(at, &buffer).await,
                    };
                    ended.expect("the emulated controller does not fail");
                    completed.set(completed.get() + 1);
                }
            };
            ensure!(reactor.spawn(task).is_ok(), "no task slot is free");
        }
        Ok(Self {
            reactor,
            clock,
            completed,
            _controller: controller,
            _pool: pool,
        })
    }

    /// One turn; the I/Os that it completed.
    pub fn turn(&mut self) -> usize {
        let before = self.completed.get();
        self.reactor.poll_once(self.clock.now());
        self.completed.get() - before
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.reactor.tear_down();
    }
}
