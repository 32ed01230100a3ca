//! A drive that is lent and that nobody else uses, for the time of one command.

use std::{
    cell::RefCell,
    rc::Rc,
    sync::{Arc, Mutex},
    time::Duration,
};

use corebay_core::{
    arena::{Arena, Hugepages},
    buffer::BufferPool,
    reactor::{MachineClock, Reactor, run as run_reactor},
    units::CoreId,
};
use corebay_nvme::{
    pcie::{Controller, DmaWindows, DriverOptions},
    vfio::VfioSpace,
};

use super::super::Failure;
use crate::appliance::{Lease, Opener};

/// Tasks that there may be.
const TASKS: usize = 1200;

/// What a command works with.
pub struct Alone {
    /// The drive.
    pub controller: Controller<Lease>,
    /// Memory for payload.
    pub pool: Rc<BufferPool>,
    /// Where that lies for the drive.
    pub windows: DmaWindows,
    /// The thread's reactor.
    pub reactor: Reactor,
    /// The machine's clock.
    pub clock: MachineClock,
}

/// Brings a drive up, does something with it, and shuts it down.
pub fn with<T: 'static, F>(
    address: &str,
    options: DriverOptions,
    memory_bytes: usize,
    work: impl FnOnce(Rc<Alone>) -> F + 'static,
) -> Result<T, Failure>
where
    F: Future<Output = Result<T, String>> + 'static,
{
    let failed = |why: String| {
        let help = "if another appliance has it, name its socket with --control";
        Failure::new(format!("the drive at {address}: {why}"), help)
    };
    let arena = Arena::new(memory_bytes, Hugepages::Auto);
    let mut arena = arena.map_err(|error| failed(error.to_string()))?;
    let opener = Opener {
        space: VfioSpace::new().map_err(|error| failed(error.to_string()))?,
        payload: arena.memory(),
        options: options.clone(),
        hugepages: Hugepages::Auto,
        arenas: Arc::new(Mutex::default()),
    };
    let region = arena.take(arena.remaining());
    let region = region.ok_or_else(|| failed("there is no memory for it".into()))?;
    let opened = opener.open(address).map_err(failed)?;
    let clock = MachineClock::new();
    let reactor = Reactor::new(CoreId(0), TASKS, clock.now());
    let outcome = Rc::new(RefCell::new(Err("it was not asked".to_owned())));
    let (of_task, said) = (reactor.clone(), outcome.clone());
    let task = Box::pin(async move {
        let done = async {
            let (controller, window, _) = opened.bring_up(&of_task, options).await?;
            let alone = Rc::new(Alone {
                controller,
                pool: Rc::new(BufferPool::new(region, TASKS)),
                windows: DmaWindows::new(&[window]),
                reactor: of_task.clone(),
                clock,
            });
            let done = work(alone.clone()).await;
            let _ = alone.controller.shut_down().await;
            done
        };
        let done = done.await;
        *said.borrow_mut() = done;
        of_task.stop();
    });
    let spawned = reactor.spawn(task);
    debug_assert!(spawned.is_ok(), "it has slots");
    run_reactor(&reactor, clock, Some(Duration::from_millis(1)));
    reactor.tear_down();
    let said = outcome.replace(Err(String::new()));
    said.map_err(failed)
}
