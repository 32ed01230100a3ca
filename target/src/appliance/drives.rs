//! NVMe drives that corebay drives itself: a thread that keeps their controllers, and what the cores
//! open of them.
//!
//! Invariants:
//! - The thread is started with the first drive. It brings drives up, watches and resets them, and
//!   shuts them down; it does no I/O, so a core never waits for it.
//! - A drive is brought up once, however many of its namespaces are served, and stays up until the
//!   end: a disk that a configuration names no more gives back its queue, not the drive.
//! - All memory is mapped for the drives before a core starts.

use std::{
    collections::BTreeMap,
    path::Path,
    rc::Rc,
    sync::{Arc, mpsc},
    thread::JoinHandle,
    time::Duration,
};

use corebay_conf::appliance::DriveName;
use corebay_core::{
    arena::{Arena, ArenaMemory, Hugepages},
    disk::DiskInfo,
    dma::DmaRegion,
    reactor::{MachineClock, Reactor},
    units::CoreId,
};
use corebay_nvme::{
    machine,
    pcie::{
        Controller, DmaWindow, DmaWindows, Drive, DriverOptions, NamespaceInfo, PciDevice, Refusal,
    },
    vfio::{VfioDevice, VfioRegisters, VfioSpace},
};
use tracing::{info, warn};

use super::run::spawn;
use crate::cli::Failure;

/// How long a drive may take to come up: what controllers state at most, and some.
const BRING_UP_TIMEOUT: Duration = Duration::from_secs(200);

/// How long the drives may take to shut down.
const SHUT_DOWN_TIMEOUT: Duration = Duration::from_secs(60);

/// How long the keeper's thread waits for requests before it looks at the drives again.
const PAUSE_MAX: Duration = Duration::from_millis(5);

/// The tasks of the keeper's thread: a few for each drive.
const TASKS: usize = 1024;

/// A namespace of a drive, to be opened by every core.
pub struct NvmeMedium {
    /// The drive.
    pub drive: Arc<Drive<VfioRegisters>>,
    /// The namespace.
    pub namespace: Arc<NamespaceInfo>,
    /// Where the cores' buffers lie for the drive.
    pub windows: DmaWindows,
}

impl NvmeMedium {
    /// What the disks over it are.
    pub fn info(&self) -> DiskInfo {
        self.namespace.disk_info()
    }

    /// True where both are the same namespace.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.namespace, &other.namespace)
    }
}

/// A drive that is up.
#[derive(Clone)]
struct Up {
    drive: Arc<Drive<VfioRegisters>>,
    window: DmaWindow,
}

/// What the keeper's thread is asked.
enum Request {
    BringUp(String, mpsc::Sender<Result<Up, String>>),
    End(mpsc::Sender<()>),
}

/// The drives of the process.
pub struct Drives {
    payload: ArenaMemory,
    options: DriverOptions,
    hugepages: Hugepages,
    keeper: Option<(mpsc::Sender<Request>, JoinHandle<()>)>,
    up: BTreeMap<String, Up>,
}

impl Drives {
    /// None yet. `payload` is the memory of all cores' buffers.
    pub fn new(payload: ArenaMemory, cores: usize, hugepages: Hugepages) -> Self {
        let options = DriverOptions {
            queues: u16::try_from(cores).unwrap_or(u16::MAX),
            ..DriverOptions::default()
        };
        Self {
            payload,
            options,
            hugepages,
            keeper: None,
            up: BTreeMap::new(),
        }
    }

    /// The namespace that a configuration names.
    pub fn open(&mut self, name: &DriveName, nsid: Option<u32>) -> Result<NvmeMedium, Failure> {
        let addresses = match name {
            DriveName::Address(address) => vec![address.clone()],
            _ => lent(name)?,
        };
        let by_address = matches!(name, DriveName::Address(_));
        for address in addresses {
            let up = match self.bring_up(&address) {
                Ok(up) => up,
                Err(failure) if by_address => return Err(failure),
                // It may not even be the one that is looked for.
                Err(failure) => {
                    warn!("{failure}");
                    continue;
                }
            };
            if !is_called(&up.drive, name) {
                continue;
            }
            let namespace = choose(&up.drive, name, nsid)?;
            return Ok(NvmeMedium {
                drive: up.drive,
                namespace,
                windows: DmaWindows::new(&[up.window]),
            });
        }
        Err(Failure::new(
            format!("no drive that is bound to vfio-pci is {name}"),
            "`corebay drives` lists the drives, `corebay drives bind ADDRESS` takes one from the kernel",
        ))
    }

    fn bring_up(&mut self, address: &str) -> Result<Up, Failure> {
        if let Some(up) = self.up.get(address) {
            return Ok(up.clone());
        }
        check_lent(address)?;
        let (answer, brought) = mpsc::channel();
        self.ask(Request::BringUp(address.to_owned(), answer))?;
        let up = match brought.recv_timeout(BRING_UP_TIMEOUT) {
            Ok(Ok(up)) => up,
            Ok(Err(why)) => {
                return Err(Failure::new(
                    format!("the drive at {address}: {why}"),
                    "`corebay doctor` says what the machine lacks",
                ));
            }
            Err(_) => {
                return Err(Failure::new(
                    format!("the drive at {address} does not come up"),
                    "",
                ));
            }
        };
        let (queues, cores) = (up.drive.queues(), usize::from(self.options.queues));
        if queues < cores {
            return Err(Failure::new(
                format!("the drive at {address} has {queues} I/O queues for {cores} cores"),
                "name fewer cores in reactor.cores",
            ));
        }
        let about = up.drive.info();
        info!(
            address,
            model = about.model,
            serial = about.serial,
            firmware = about.firmware,
            write_cache = about.volatile_cache,
            "drive"
        );
        self.up.insert(address.to_owned(), up.clone());
        Ok(up)
    }

    fn ask(&mut self, request: Request) -> Result<(), Failure> {
        if self.keeper.is_none() {
            self.keeper = Some(self.start_keeper()?);
        }
        let sent = self
            .keeper
            .as_ref()
            .is_some_and(|(keeper, _)| keeper.send(request).is_ok());
        let gone = || Failure::new("the drives' thread has ended", "look at the log above");
        sent.then_some(()).ok_or_else(gone)
    }

    fn start_keeper(&self) -> Result<(mpsc::Sender<Request>, JoinHandle<()>), Failure> {
        let space = VfioSpace::new()
            .map_err(|error| Failure::new(error.to_string(), "see `corebay doctor`"))?;
        let keeper = Keeper {
            space,
            payload: self.payload.clone(),
            options: self.options.clone(),
            hugepages: self.hugepages,
        };
        let (sender, requests) = mpsc::channel();
        let thread = spawn("corebay-drives".into(), move || keeper.run(&requests))?;
        Ok((sender, thread))
    }

    /// Shuts all drives down; every core has ended.
    pub fn end(&mut self) {
        let Some((keeper, thread)) = self.keeper.take() else {
            return;
        };
        let (answer, ended) = mpsc::channel();
        let asked = keeper.send(Request::End(answer));
        if asked.is_err() || ended.recv_timeout(SHUT_DOWN_TIMEOUT).is_err() {
            warn!("not every drive was shut down");
            return;
        }
        // It has nothing left to do but to return.
        let _ = thread.join();
    }
}

impl Drop for Drives {
    fn drop(&mut self) {
        self.end();
    }
}

/// The drives that are bound to vfio-pci.
fn lent(name: &DriveName) -> Result<Vec<String>, Failure> {
    let drives = machine::drives(Path::new("/"));
    if let DriveName::Serial(serial) = name {
        // The kernel knows the serial numbers of those that it drives itself.
        let known = drives
            .iter()
            .find(|drive| drive.serial.as_deref() == Some(serial.as_str()));
        if let Some(drive) = known {
            return Err(not_lent(&drive.address, drive.driver.as_deref()));
        }
    }
    let lent = drives.into_iter().filter(machine::MachineDrive::is_lent);
    Ok(lent.map(|drive| drive.address).collect())
}

fn check_lent(address: &str) -> Result<(), Failure> {
    let drives = machine::drives(Path::new("/"));
    match drives.iter().find(|drive| drive.address == address) {
        Some(drive) if drive.is_lent() => Ok(()),
        Some(drive) => Err(not_lent(address, drive.driver.as_deref())),
        None => Err(Failure::new(
            format!("there is no NVMe drive at {address}"),
            "`corebay drives` lists the drives",
        )),
    }
}

fn not_lent(address: &str, driver: Option<&str>) -> Failure {
    let of = driver.map_or_else(String::new, |driver| format!(", but to {driver}"));
    Failure::new(
        format!("the drive at {address} is not bound to vfio-pci{of}"),
        format!("`corebay drives bind {address}` takes it from the kernel"),
    )
}

fn is_called(drive: &Drive<VfioRegisters>, name: &DriveName) -> bool {
    match name {
        DriveName::Address(_) => true,
        DriveName::Serial(serial) => drive.info().serial == serial.as_str(),
        DriveName::Eui64(_) | DriveName::Nguid(_) => {
            let mut usable = drive.namespaces().iter().flat_map(|known| &known.state);
            usable.any(|namespace| is_named(namespace, name))
        }
    }
}

fn is_named(namespace: &NamespaceInfo, name: &DriveName) -> bool {
    match name {
        DriveName::Eui64(eui64) => namespace.eui64 == eui64.bytes(),
        DriveName::Nguid(nguid) => namespace.nguid == nguid.bytes(),
        _ => true,
    }
}

/// The namespace that is meant; where none is said, there must be only one.
fn choose(
    drive: &Drive<VfioRegisters>,
    name: &DriveName,
    nsid: Option<u32>,
) -> Result<Arc<NamespaceInfo>, Failure> {
    let refused = |nsid: u32, why: &Refusal| {
        let message = format!(
            "namespace {nsid} of the drive at {}: {why}",
            drive.address()
        );
        Failure::new(message, "")
    };
    let meant: Vec<_> = drive
        .namespaces()
        .iter()
        .filter(|known| nsid.is_none_or(|nsid| known.nsid == nsid))
        .filter(|known| match &known.state {
            Ok(namespace) => is_named(namespace, name),
            Err(_) => matches!(name, DriveName::Address(_) | DriveName::Serial(_)),
        })
        .collect();
    match meant.as_slice() {
        [only] => only.state.clone().map_err(|why| refused(only.nsid, &why)),
        [] => Err(Failure::new(
            format!("the drive at {} has no such namespace", drive.address()),
            "its namespaces are formatted and attached by `nvme create-ns` and `nvme attach-ns`",
        )),
        several => {
            let nsids: Vec<String> = several.iter().map(|known| known.nsid.to_string()).collect();
            Err(Failure::new(
                format!(
                    "the drive at {} has several namespaces: {}",
                    drive.address(),
                    nsids.join(", ")
                ),
                "say which, as in nvme = { address = \"...\", nsid = 1 }",
            ))
        }
    }
}

/// What the keeper's thread works with.
struct Keeper {
    space: Arc<VfioSpace>,
    payload: ArenaMemory,
    options: DriverOptions,
    hugepages: Hugepages,
}

type Controllers = Rc<std::cell::RefCell<Vec<Controller<VfioDevice>>>>;

impl Keeper {
    fn run(self, requests: &mpsc::Receiver<Request>) {
        let clock = MachineClock::new();
        let reactor = Reactor::new(CoreId(0), TASKS, clock.now());
        let controllers = Controllers::default();
        while !reactor.is_stopping() {
            let worked = reactor.poll_once(clock.now()) > 0;
            let until = reactor.next_deadline().map(|at| at.since(clock.now()));
            let pause = match worked {
                true => Duration::ZERO,
                false => until.unwrap_or(PAUSE_MAX).min(PAUSE_MAX),
            };
            match requests.recv_timeout(pause) {
                Ok(Request::BringUp(address, answer)) => {
                    self.bring_up(&address, answer, &reactor, &controllers);
                }
                Ok(Request::End(answer)) => end(answer, &reactor, &controllers),
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
            }
        }
        reactor.tear_down();
    }

    fn bring_up(
        &self,
        address: &str,
        answer: mpsc::Sender<Result<Up, String>>,
        reactor: &Reactor,
        controllers: &Controllers,
    ) {
        let (device, memory, own, window) = match self.open(address) {
            Ok(opened) => opened,
            Err(why) => {
                let _ = answer.send(Err(why));
                return;
            }
        };
        let (of_task, options) = (reactor.clone(), self.options.clone());
        let controllers = controllers.clone();
        let task = async move {
            let up = Controller::bring_up(device, &of_task, memory, own, options).await;
            let up = up.map(|controller| {
                let drive = controller.drive().clone();
                controllers.borrow_mut().push(controller);
                Up { drive, window }
            });
            let _ = answer.send(up.map_err(|error| error.to_string()));
        };
        if reactor.spawn(Box::pin(task)).is_err() {
            warn!("too many drives");
        }
    }

    /// Opens a device and maps the memory for it: that of its queues, and that of all payload.
    #[allow(clippy::type_complexity, reason = "the parts of a bring-up")]
    fn open(&self, address: &str) -> Result<(VfioDevice, DmaRegion, DmaWindow, DmaWindow), String> {
        let mut device =
            VfioDevice::open(&self.space, address).map_err(|error| error.to_string())?;
        let bytes = self.options.memory_bytes();
        let mut arena = Arena::new(bytes, self.hugepages).map_err(|error| error.to_string())?;
        let own = device
            .map(&arena.memory())
            .map_err(|error| error.to_string())?;
        let window = device
            .map(&self.payload)
            .map_err(|error| error.to_string())?;
        let memory = arena.take(bytes).and_then(DmaRegion::new);
        let memory = memory.ok_or("there is not enough memory for its queues")?;
        Ok((device, memory, own, window))
    }
}

/// Shuts all controllers down, then ends the thread's reactor.
fn end(answer: mpsc::Sender<()>, reactor: &Reactor, controllers: &Controllers) {
    let (of_task, controllers) = (reactor.clone(), controllers.clone());
    let task = async move {
        let all = std::mem::take(&mut *controllers.borrow_mut());
        for controller in all {
            controller.shut_down().await;
        }
        let _ = answer.send(());
        of_task.stop();
    };
    let _ = reactor.spawn(Box::pin(task));
}
