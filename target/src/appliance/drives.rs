//! NVMe drives that corebay drives itself: a thread that keeps their controllers, and what the cores
//! open of them.
//!
//! Invariants:
//! - The thread is started with the first drive. It brings drives up, watches and resets them, and
//!   shuts them down; it does no I/O, so a core never waits for it. Nor does it wait for the kernel: that has
//!   threads of its own ([`openings`](super::openings), [`lease`](super::lease)).
//! - The main thread waits for a drive only before it serves. Later it puts off what needs one that is not up
//!   yet ([`put_off`](super::put_off)). Drives that are named together come up side by side.
//! - A drive is brought up once, however many of its namespaces are served, and stays up until the
//!   end or its loss: a disk that a configuration names no more gives back its queue, not the drive.
//!   One that was brought up and is of no use after all is let go.
//! - A drive that was lost is looked for ([`returns`](super::returns)). Whatever is found is told to the
//!   main thread only once it is known to be that drive. Where nothing on it is what it was, it is let go,
//!   and looked at again once it is bound anew.
//! - All memory is mapped for the drives before a core starts.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    path::Path,
    rc::Rc,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::Duration,
};

use corebay_conf::appliance::DriveName;
use corebay_core::{
    arena::{ArenaMemory, Hugepages},
    disk::DiskInfo,
    reactor::{MachineClock, Reactor},
    units::{CoreId, Time},
};
use corebay_nvme::{
    machine::{self, returned::Sighting},
    pcie::{AdminError, Controller, DmaWindow, DmaWindows, Drive, DriverOptions, NamespaceInfo},
    vfio::{VfioRegisters, VfioSpace},
};
use serde_json::{Value, json};
use tracing::{error, info, warn};

use super::{
    control::RpcError,
    health,
    keeper::Event,
    lease::Lease,
    naming::{check_lent, choose, is_called, is_served, lent},
    openings::Openings,
    returns::{Opened, Opener, Search},
    run::spawn,
};
use crate::cli::Failure;

/// How long a drive may take to come up: what controllers state at most, and some.
const BRING_UP_TIMEOUT: Duration = Duration::from_secs(200);

/// How long the drives may take to shut down, all at the same time: what one of them may state at most,
/// and some.
const SHUT_DOWN_TIMEOUT: Duration = Duration::from_secs(75);

/// How long the keeper's thread waits for requests before it looks at the drives again.
const PAUSE_MAX: Duration = Duration::from_millis(5);

/// How often it is looked whether a drive was lost.
const LOOK: Duration = Duration::from_millis(250);

/// How long a drive is left alone that returned and did not come up.
const AFTER_FAILURE: Duration = Duration::from_secs(5);

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
    /// What it was before lost its power, perhaps, with acknowledged writes in its volatile cache.
    pub lost_writes: bool,
}

impl NvmeMedium {
    /// What the disks over it are.
    pub fn info(&self) -> DiskInfo {
        self.namespace.disk_info()
    }

    /// The same namespace, of the drive that this one's is again; or why it is not.
    pub fn again(&self, up: &Up) -> Result<Self, String> {
        let was = &self.namespace;
        let known = up.drive.namespaces();
        let found = known.iter().find(|known| known.nsid == was.nsid);
        let now = match found.map(|known| &known.state) {
            Some(Ok(now)) => now.clone(),
            Some(Err(why)) => return Err(format!("of namespace {}: {why}", was.nsid)),
            None => return Err(format!("it has no namespace {}", was.nsid)),
        };
        if let Some(differs) = was.differs(&now) {
            return Err(format!("namespace {} {differs}", was.nsid));
        }
        Ok(Self {
            drive: up.drive.clone(),
            lost_writes: was.has_unflushed(),
            namespace: now,
            windows: DmaWindows::new(&[up.window]),
        })
    }

    /// The same namespace, of the drive that was lost and is there again, but not as it was: it stays
    /// lost, until that drive changes or returns once more.
    pub fn still_lost(&self, up: &Up) -> Self {
        Self {
            drive: up.drive.clone(),
            namespace: self.namespace.clone(),
            windows: self.windows.clone(),
            lost_writes: self.lost_writes,
        }
    }

    /// True where its drive is up and has another namespace in its place, that may be what it was.
    pub fn may_be_again(&self) -> bool {
        let now = self.drive.namespace(self.namespace.nsid);
        let is_other = now.is_some_and(|now| !Arc::ptr_eq(&now, &self.namespace));
        is_other && !self.drive.has_failed()
    }

    /// True where both are the same namespace.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.namespace, &other.namespace)
    }
}

/// A drive that is up.
#[derive(Clone)]
pub struct Up {
    /// The drive.
    pub drive: Arc<Drive<VfioRegisters>>,
    /// Where the cores' buffers lie for it.
    pub window: DmaWindow,
    /// It is named by what it is, not by where it is.
    anywhere: Arc<AtomicBool>,
}

/// A drive that was lost is there again.
pub struct Returned {
    /// What it was.
    pub lost: Arc<Drive<VfioRegisters>>,
    /// What it is now.
    pub up: Up,
}

/// Where it is told what came of bringing a drive up.
type BroughtUp = mpsc::Sender<Result<Up, String>>;

/// What the keeper's thread is asked.
pub enum Request {
    /// To bring a drive up.
    BringUp(String, BroughtUp),
    /// To look for drives that are lost from now on, and to say which have returned.
    Watch(mpsc::Sender<Event>),
    /// To let go of a drive that nothing uses.
    LetGo(Arc<Drive<VfioRegisters>>),
    /// To let go of a drive that returned and is not what it was, and to look for its next return.
    Refuse(Arc<Drive<VfioRegisters>>),
    /// To see whether this is the drive that was lost.
    Found(Arc<Drive<VfioRegisters>>, Box<Opened>),
    /// To ask a drive how it is.
    Report(String, mpsc::Sender<Result<Value, RpcError>>),
    /// To shut all drives down.
    End(mpsc::Sender<(String, Ending)>),
}

/// The drives of the process.
pub struct Drives {
    payload: ArenaMemory,
    options: DriverOptions,
    hugepages: Hugepages,
    keeper: Option<(mpsc::Sender<Request>, JoinHandle<()>)>,
    /// For a keeper that is started later.
    events: Option<mpsc::Sender<Event>>,
    up: BTreeMap<String, Up>,
    /// Those that are being brought up.
    coming: BTreeMap<String, Coming>,
    /// What came of those that did not come up, for whoever waited for them.
    failed: BTreeMap<String, Failure>,
    /// Something was refused as a drive is not up yet.
    put_off: bool,
    /// The addresses of those that a disk was opened of.
    used: BTreeSet<String>,
}

/// A drive that is being brought up.
struct Coming {
    brought: mpsc::Receiver<Result<Up, String>>,
    deadline: Time,
}

impl Drives {
    /// None yet. `payload` is the memory of all cores' buffers; drives are told the host identifier.
    pub fn new(
        payload: ArenaMemory,
        cores: usize,
        hugepages: Hugepages,
        host_identifier: [u8; 16],
    ) -> Self {
        let options = DriverOptions {
            queues: u16::try_from(cores).unwrap_or(u16::MAX),
            host_identifier,
            ..DriverOptions::default()
        };
        Self {
            payload,
            options,
            hugepages,
            keeper: None,
            events: None,
            up: BTreeMap::new(),
            coming: BTreeMap::new(),
            failed: BTreeMap::new(),
            put_off: false,
            used: BTreeSet::new(),
        }
    }

    /// The namespace that a configuration names. Whoever uses it says so ([`keep`](Self::keep)). Where its
    /// drive is not up yet, it is brought up from now on, and this is put off
    /// ([`was_put_off`](Self::was_put_off)).
    pub fn open(&mut self, name: &DriveName, nsid: Option<u32>) -> Result<NvmeMedium, Failure> {
        let by_address = matches!(name, DriveName::Address(_));
        let addresses = match name {
            DriveName::Address(address) => vec![address.clone()],
            _ => match self.up.values().find(|up| is_served(up, name)) {
                Some(up) => vec![up.drive.address().to_owned()],
                None => lent(name)?,
            },
        };
        let mut not_yet = None;
        for address in addresses {
            let up = match self.bring_up(&address) {
                Ok(up) => up,
                Err(failure) if by_address => return Err(failure),
                Err(failure) if self.coming.contains_key(&address) => {
                    not_yet = Some(failure);
                    continue;
                }
                // It may not even be the one that is looked for.
                Err(failure) => {
                    warn!("{failure}");
                    continue;
                }
            };
            if !is_called(&up.drive, name) {
                continue;
            }
            if !by_address {
                up.anywhere.store(true, Ordering::Relaxed);
            }
            let namespace = choose(&up.drive, name, nsid)?;
            return Ok(NvmeMedium {
                drive: up.drive,
                namespace,
                windows: DmaWindows::new(&[up.window]),
                lost_writes: false,
            });
        }
        Err(not_yet.unwrap_or_else(|| {
            Failure::new(
                format!("no drive that is bound to vfio-pci is {name}"),
                "`corebay drives` lists the drives, `corebay drives bind ADDRESS` takes one from the kernel",
            )
        }))
    }

    /// The drive of this namespace stays up.
    pub fn keep(&mut self, medium: &NvmeMedium) {
        self.used.insert(medium.drive.address().to_owned());
    }

    /// Lets go of the drives that were brought up and that nobody uses: they turned out to be others than
    /// those that were looked for, or have no namespace that can be used.
    pub fn let_go_unused(&mut self) {
        if !self.coming.is_empty() || self.put_off {
            // Whoever waits for others may use them.
            return;
        }
        let used = &self.used;
        let is_unused = |address: &&String| !used.contains(*address);
        let unused: Vec<String> = self.up.keys().filter(is_unused).cloned().collect();
        for address in unused {
            info!(address, "let go: nothing on it is used");
            if let Some(up) = self.up.remove(&address) {
                let _ = self.ask(Request::LetGo(up.drive));
            }
        }
    }

    /// A drive that returned has nothing that it had: it is let go, and looked at again once it is bound
    /// anew.
    pub fn refuse(&mut self, up: &Up) {
        let _ = self.ask(Request::Refuse(up.drive.clone()));
    }

    /// The drive at this address, while it is up.
    pub fn at(&self, address: &str) -> Option<Up> {
        let up = self.up.get(address);
        up.filter(|up| !up.drive.has_failed()).cloned()
    }

    fn bring_up(&mut self, address: &str) -> Result<Up, Failure> {
        if let Some(up) = self.up.get(address).filter(|up| !up.drive.has_failed()) {
            return Ok(up.clone());
        }
        if self.up.contains_key(address) {
            return Err(Failure::new(
                format!("the drive at {address} was lost"),
                "put it back into its slot, or `corebay drives unbind` and `bind` it",
            ));
        }
        if let Some(failure) = self.failed.get(address) {
            return Err(failure.clone());
        }
        if !self.coming.contains_key(address) {
            check_lent(address)?;
            self.begin(address)?;
        }
        self.put_off = true;
        let message = format!("the drive at {address} is being brought up");
        Err(Failure::new(message, ""))
    }

    fn begin(&mut self, address: &str) -> Result<(), Failure> {
        let (answer, brought) = mpsc::channel();
        self.ask(Request::BringUp(address.to_owned(), answer))?;
        let deadline = MachineClock::new().now().plus(BRING_UP_TIMEOUT);
        let coming = Coming { brought, deadline };
        self.coming.insert(address.to_owned(), coming);
        Ok(())
    }

    /// True where something was refused since this was asked last, as a drive is not up yet.
    pub fn was_put_off(&mut self) -> bool {
        std::mem::take(&mut self.put_off)
    }

    /// True where something was, and nobody has asked yet.
    pub fn is_put_off(&self) -> bool {
        self.put_off
    }

    /// What is being done has to be done again once the drives are up.
    pub fn put_off(&mut self) {
        self.put_off = true;
    }

    /// Takes the drives that came up, or did not. True once none is awaited.
    pub fn settle(&mut self) -> bool {
        let now = MachineClock::new().now();
        for (address, coming) in std::mem::take(&mut self.coming) {
            match coming.brought.try_recv() {
                Ok(brought) => self.came(address, brought),
                Err(mpsc::TryRecvError::Empty) if now < coming.deadline => {
                    self.coming.insert(address, coming);
                }
                Err(_) => self.came(address, Err("it does not come up".to_owned())),
            }
        }
        self.coming.is_empty()
    }

    /// Waits until no drive is awaited.
    pub fn wait(&mut self) {
        // Nothing is ever sent: a wait by the clock.
        let (_keep, never) = mpsc::channel::<()>();
        while !self.settle() {
            let _ = never.recv_timeout(PAUSE_MAX);
        }
    }

    /// True while drives are awaited, or whoever waited has not been told what came of it.
    pub fn are_awaited(&self) -> bool {
        !self.coming.is_empty() || !self.failed.is_empty()
    }

    /// Everybody has been told: drives that did not come up are tried again by whoever asks next.
    pub fn all_told(&mut self) {
        self.failed.clear();
        self.let_go_unused();
    }

    fn came(&mut self, address: String, brought: Result<Up, String>) {
        let cores = usize::from(self.options.queues);
        let failure = match brought {
            Ok(up) if up.drive.queues() >= cores => return self.know(&up),
            Ok(up) => {
                let queues = up.drive.queues();
                let _ = self.ask(Request::LetGo(up.drive));
                Failure::new(
                    format!("the drive at {address} has {queues} I/O queues for {cores} cores"),
                    "name fewer cores in reactor.cores",
                )
            }
            Err(why) => Failure::new(
                format!("the drive at {address}: {why}"),
                "`corebay doctor` says what the machine lacks",
            ),
        };
        self.failed.insert(address, failure);
    }

    fn know(&mut self, up: &Up) {
        let (address, about) = (up.drive.address(), up.drive.info());
        info!(
            address,
            model = about.model,
            serial = about.serial,
            firmware = about.firmware,
            write_cache = about.volatile_cache,
            "drive"
        );
        self.up.insert(address.to_owned(), up.clone());
    }

    /// The drives in words of the control socket.
    pub fn list(&self) -> Vec<Value> {
        let drives = self.up.values().map(|up| {
            let (drive, about) = (&up.drive, up.drive.info());
            let namespaces = drive.namespaces();
            let usable = namespaces.iter().flat_map(|known| &known.state);
            let bytes: u64 = usable.map(|namespace| namespace.disk_info().bytes()).sum();
            json!({
                "bytes": bytes,
                "address": drive.address(),
                "model": about.model,
                "serial": about.serial,
                "firmware": about.firmware,
                "state": if drive.has_failed() { "lost" } else { "up" },
                "resets": drive.resets(),
            })
        });
        drives.collect()
    }

    /// Asks a drive for its health and its firmware.
    pub fn report(&mut self, address: &str) -> mpsc::Receiver<Result<Value, RpcError>> {
        let (answer, report) = mpsc::channel();
        let refused = match self.up.get(address) {
            None => Some(format!("no drive at {address} is in use here")),
            Some(up) if up.drive.has_failed() => Some(format!("the drive at {address} was lost")),
            Some(_) => None,
        };
        match refused {
            Some(why) => drop(answer.send(Err(RpcError::refused(why)))),
            // Where there is no keeper any more, the answer's end says so.
            None => drop(self.ask(Request::Report(address.to_owned(), answer))),
        }
        report
    }

    /// From now on drives that are lost are looked for, and their return is told.
    pub fn watch(&mut self, events: mpsc::Sender<Event>) {
        // Without a keeper there are no drives yet; one that comes later is told by the next start.
        if self.keeper.is_none() {
            self.events = Some(events);
            return;
        }
        let _ = self.ask(Request::Watch(events));
    }

    /// A drive is there again.
    pub fn has_returned(&mut self, returned: &Returned) {
        self.up.remove(returned.lost.address());
        self.used.remove(returned.lost.address());
        self.used.insert(returned.up.drive.address().to_owned());
        self.know(&returned.up);
    }

    fn ask(&mut self, request: Request) -> Result<(), Failure> {
        if self.keeper.is_none() {
            let (keeper, thread) = self.start_keeper()?;
            if let Some(events) = self.events.take() {
                let _ = keeper.send(Request::Watch(events));
            }
            self.keeper = Some((keeper, thread));
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
        let opener = Opener {
            space,
            payload: self.payload.clone(),
            options: self.options.clone(),
            hugepages: self.hugepages,
            arenas: Arc::new(Mutex::default()),
        };
        let (sender, requests) = mpsc::channel();
        let to_itself = sender.clone();
        let keep = move || Keeper::new(opener, to_itself).run(&requests);
        let thread = spawn("corebay-drives".into(), keep)?;
        Ok((sender, thread))
    }

    /// Shuts all drives down; every core has ended. False where one was not, which may have lost what it
    /// had not been told to flush.
    pub fn end(&mut self) -> bool {
        let Some((keeper, thread)) = self.keeper.take() else {
            return true;
        };
        let (answer, answers) = mpsc::channel();
        if keeper.send(Request::End(answer)).is_err() {
            error!("the drives were not shut down: their keeper is gone");
            return false;
        }
        let (open, all_said) = still_open(&answers, SHUT_DOWN_TIMEOUT);
        if !open.is_empty() {
            let drives = open.into_iter().collect::<Vec<_>>().join(", ");
            error!(drives, "not every drive was shut down");
            return false;
        }
        match all_said {
            // It has nothing left to do but to return.
            true => drop(thread.join()),
            false => warn!("a drive that does not answer is still being opened"),
        }
        true
    }
}

/// The drives that were not shut down when nothing more was to come, or `limit` was over; and whether
/// nothing more was to come.
fn still_open(
    answers: &mpsc::Receiver<(String, Ending)>,
    limit: Duration,
) -> (BTreeSet<String>, bool) {
    let clock = MachineClock::new();
    let began = clock.now();
    let mut open = BTreeSet::new();
    loop {
        let left = limit.saturating_sub(clock.now().since(began));
        match answers.recv_timeout(left) {
            Ok((address, Ending::Begins)) => open.insert(address),
            Ok((address, Ending::Ended)) => open.remove(&address),
            Err(why) => return (open, why == mpsc::RecvTimeoutError::Disconnected),
        };
    }
}

impl Drop for Drives {
    fn drop(&mut self) {
        self.end();
    }
}

/// A controller that the thread keeps.
struct Kept {
    up: Up,
    controller: Controller<Lease>,
    /// How the kernel showed it when it was opened.
    seen: Sighting,
    /// Bindings that turned out to be other drives than this one, which was lost.
    others: Vec<u64>,
    search: Option<Search>,
    /// How often its namespaces had changed when that was last told.
    changes: u64,
}

/// What the keeper's thread works with.
struct Keeper {
    opener: Opener,
    clock: MachineClock,
    reactor: Reactor,
    kept: Rc<RefCell<Vec<Kept>>>,
    openings: Rc<RefCell<Openings<Opened, BroughtUp>>>,
    to_itself: mpsc::Sender<Request>,
    /// Who is told of drives that return.
    events: Option<mpsc::Sender<Event>>,
    next_look: Time,
}

impl Keeper {
    fn new(opener: Opener, to_itself: mpsc::Sender<Request>) -> Self {
        let clock = MachineClock::new();
        Self {
            opener,
            clock,
            reactor: Reactor::new(CoreId(0), TASKS, clock.now()),
            kept: Rc::default(),
            openings: Rc::new(RefCell::new(Openings::new())),
            to_itself,
            events: None,
            next_look: clock.now(),
        }
    }

    fn run(mut self, requests: &mpsc::Receiver<Request>) {
        while !self.reactor.is_stopping() {
            let worked = self.reactor.poll_once(self.clock.now()) > 0;
            let until = self.reactor.next_deadline();
            let until = until.map(|at| at.since(self.clock.now()));
            let pause = match worked {
                true => Duration::ZERO,
                false => until.unwrap_or(PAUSE_MAX).min(PAUSE_MAX),
            };
            match requests.recv_timeout(pause) {
                Ok(Request::BringUp(address, answer)) => self.open(address, answer),
                Ok(Request::Watch(events)) => self.events = Some(events),
                Ok(Request::LetGo(drive)) => self.let_go(&drive),
                Ok(Request::Refuse(drive)) => self.refuse(&drive),
                Ok(Request::Found(lost, opened)) => self.look_at(lost, *opened),
                Ok(Request::Report(address, answer)) => self.report(&address, answer),
                Ok(Request::End(answer)) => self.end(&answer),
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
            }
            self.go_on();
            self.look_at_all();
        }
        self.reactor.tear_down();
    }

    fn open(&self, address: String, answer: BroughtUp) {
        let opener = self.opener.clone();
        let (place, now) = (address.clone(), self.clock.now());
        let open = move || opener.open(&address);
        let begun = (self.openings.borrow_mut()).begin(&place, answer, now, open);
        if let Err((answer, Err(why))) = begun {
            let _ = answer.send(Err(why));
        }
    }

    /// Goes on with the drives that were opened.
    fn go_on(&self) {
        let answers = self.openings.borrow_mut().take(self.clock.now());
        for (answer, opened) in answers {
            match opened {
                Ok(opened) => self.bring_up(opened, answer),
                Err(why) => drop(answer.send(Err(why))),
            }
        }
    }

    fn bring_up(&self, opened: Opened, answer: BroughtUp) {
        let (reactor, options) = (self.reactor.clone(), self.opener.options.clone());
        let (kept, to_itself) = (self.kept.clone(), self.to_itself.clone());
        self.spawn(async move {
            let up = opened.bring_up(&reactor, options).await;
            let up = up.map(|(controller, window, seen)| {
                let up = Up {
                    drive: controller.drive().clone(),
                    window,
                    anywhere: Arc::default(),
                };
                kept.borrow_mut().push(Kept {
                    up: up.clone(),
                    controller,
                    seen,
                    others: Vec::new(),
                    search: None,
                    changes: 0,
                });
                up
            });
            let Err(mpsc::SendError(Ok(up))) = answer.send(up) else {
                return;
            };
            // Nobody waits for it any more.
            let _ = to_itself.send(Request::LetGo(up.drive));
        });
    }

    fn let_go(&self, drive: &Arc<Drive<VfioRegisters>>) {
        let mut kept = self.kept.borrow_mut();
        let place = kept
            .iter()
            .position(|kept| Arc::ptr_eq(&kept.up.drive, drive));
        if let Some(place) = place {
            let controller = kept.remove(place).controller;
            self.spawn(async move { drop(controller.shut_down().await) });
        }
    }

    /// Shut down it counts as lost, as it is seen now.
    fn refuse(&self, drive: &Arc<Drive<VfioRegisters>>) {
        let kept = self.kept.borrow();
        let found = kept.iter().find(|kept| Arc::ptr_eq(&kept.up.drive, drive));
        if let Some(controller) = found.map(|kept| kept.controller.clone()) {
            self.spawn(async move { drop(controller.shut_down().await) });
        }
    }

    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        if self.reactor.spawn(Box::pin(task)).is_err() {
            warn!("too many drives");
        }
    }

    /// Tells of namespaces that changed, and has each drive that was lost looked for as long as it is
    /// away.
    fn look_at_all(&mut self) {
        let now = self.clock.now();
        if self.events.is_none() || now < self.next_look {
            return;
        }
        self.next_look = now.plus(LOOK);
        for kept in self.kept.borrow_mut().iter_mut() {
            let changes = kept.up.drive.changes();
            if kept.changes != changes {
                kept.changes = changes;
                let _ = self.events.as_ref().map(|to| to.send(Event::DriveChanged));
            }
            if !kept.up.drive.has_failed() || kept.search.is_some() {
                continue;
            }
            let lost = machine::returned::Lost {
                address: kept.up.drive.address().to_owned(),
                serial: kept.up.drive.info().serial.clone(),
                seen: kept.seen,
                elsewhere: (kept.up.anywhere.load(Ordering::Relaxed))
                    .then(|| machine::returned::devices(Path::new("/"))),
                others: kept.others.clone(),
            };
            let lost_now = Event::DriveLost(kept.up.drive.clone());
            let _ = self.events.as_ref().map(|to| to.send(lost_now));
            let (found, drive) = (self.to_itself.clone(), kept.up.drive.clone());
            let tell = move |opened| {
                let _ = found.send(Request::Found(drive, Box::new(opened)));
            };
            match Search::start(self.opener.clone(), lost, tell) {
                Ok(search) => kept.search = Some(search),
                Err(failure) => warn!("{failure}"),
            }
        }
    }

    /// Something was found where a lost drive may be.
    fn look_at(&self, lost: Arc<Drive<VfioRegisters>>, opened: Opened) {
        let (reactor, options) = (self.reactor.clone(), self.opener.options.clone());
        let (all, events) = (self.kept.clone(), self.events.clone());
        self.spawn(async move {
            let address = opened.address().to_owned();
            let binding = opened.seen().binding;
            let up = opened.bring_up(&reactor, options).await;
            let same = match &up {
                Ok((controller, ..)) => is_same(controller.drive(), &lost),
                Err(why) => {
                    warn!(address, "the drive that is there does not come up: {why}");
                    reactor.sleep(AFTER_FAILURE).await;
                    Err(())
                }
            };
            if let (Ok((controller, ..)), Err(())) = (&up, same) {
                warn!(
                    address,
                    "what is there is another drive than the one that was lost"
                );
                let _ = controller.shut_down().await;
            }
            let mut all = all.borrow_mut();
            let is_it = |kept: &&mut Kept| Arc::ptr_eq(&kept.up.drive, &lost);
            let Some(kept) = all.iter_mut().find(is_it) else {
                return;
            };
            kept.search = None;
            match (up, same) {
                (Ok((controller, window, seen)), Ok(())) => {
                    let up = Up {
                        drive: controller.drive().clone(),
                        window,
                        anywhere: kept.up.anywhere.clone(),
                    };
                    (kept.up, kept.controller, kept.seen) = (up.clone(), controller, seen);
                    kept.others.clear();
                    kept.changes = 0;
                    let returned = Event::DriveReturned(Box::new(Returned { lost, up }));
                    let _ = events.map(|events| events.send(returned));
                }
                (Ok(_), Err(())) => kept.others.extend(binding),
                (Err(_), _) => {}
            }
        });
    }

    fn report(&self, address: &str, answer: mpsc::Sender<Result<Value, RpcError>>) {
        let all = self.kept.borrow();
        let kept = all.iter().find(|kept| kept.up.drive.address() == address);
        let Some(controller) = kept.map(|kept| kept.controller.clone()) else {
            return;
        };
        self.spawn(async move {
            let report = controller.report().await.map(|report| {
                let drive = controller.drive();
                let mut report = health::as_json(drive.address(), &report);
                report["resets"] = json!(drive.resets());
                report
            });
            let refused = |error: AdminError| RpcError::refused(error.to_string());
            let _ = answer.send(report.map_err(refused));
        });
    }

    /// Shuts all controllers down at the same time, then ends the thread's reactor, once no thread opens a
    /// drive any more.
    fn end(&self, answer: &mpsc::Sender<(String, Ending)>) {
        let stop = Rc::new(StopAtEnd(self.reactor.clone()));
        let (openings, reactor) = (self.openings.clone(), self.reactor.clone());
        let (last, until_then) = (stop.clone(), answer.clone());
        self.spawn(async move {
            while !openings.borrow().are_over() {
                reactor.sleep(PAUSE_MAX).await;
            }
            drop((last, until_then));
        });
        for kept in std::mem::take(&mut *self.kept.borrow_mut()) {
            let (answer, stop) = (answer.clone(), stop.clone());
            let address = kept.up.drive.address().to_owned();
            let _ = answer.send((address.clone(), Ending::Begins));
            self.spawn(async move {
                if kept.controller.shut_down().await.is_ok() {
                    let _ = answer.send((address, Ending::Ended));
                }
                drop(stop);
            });
        }
    }
}

/// Where a drive is on its way to its end. One that never says [`Ended`](Self::Ended) was not shut down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It is told to.
    Begins,
    /// It was shut down.
    Ended,
}

/// Ends the reactor of the keeper's thread once no drive's end has it any more.
struct StopAtEnd(Reactor);

impl Drop for StopAtEnd {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// Whether a drive is the one that was lost.
fn is_same(found: &Drive<VfioRegisters>, lost: &Drive<VfioRegisters>) -> Result<(), ()> {
    let (found, lost) = (found.info(), lost.info());
    let same = found.serial == lost.serial && found.model == lost.model;
    same.then_some(()).ok_or(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drives_that_fail_or_hang_at_the_end_are_named_and_others_are_not() {
        let (answer, answers) = mpsc::channel();
        for address in ["good", "hung", "failed"] {
            answer.send((address.to_owned(), Ending::Begins)).unwrap();
        }
        answer.send(("good".to_owned(), Ending::Ended)).unwrap();
        let (open, all_said) = still_open(&answers, Duration::from_millis(5));
        assert_eq!(open.into_iter().collect::<Vec<_>>(), ["failed", "hung"]);
        assert!(!all_said, "the hung one may still say something");
        answer.send(("good".to_owned(), Ending::Begins)).unwrap();
        answer.send(("good".to_owned(), Ending::Ended)).unwrap();
        drop(answer);
        let (open, all_said) = still_open(&answers, Duration::from_secs(3600));
        assert!(open.is_empty() && all_said);
    }

    #[test]
    fn drives_that_are_named_together_come_up_side_by_side_and_are_each_answered() {
        let arena = corebay_core::arena::Arena::lazy(1 << 20).unwrap();
        let mut drives = Drives::new(arena.memory(), 1, Hugepages::Off, [0; 16]);
        let (sender, requests) = mpsc::channel();
        let thread = spawn("test".into(), || {}).unwrap();
        drives.keeper = Some((sender, thread));
        let mut asked = Vec::new();
        for address in ["dead", "gone", "slow"] {
            drives.begin(address).unwrap();
            assert!(drives.bring_up(address).is_err() && drives.was_put_off());
            let Ok(Request::BringUp(place, answer)) = requests.try_recv() else {
                panic!("{address} is not asked for before the others have answered");
            };
            asked.push((place, answer));
        }
        assert!(requests.try_recv().is_err(), "each once");
        let answer = |place: &str| {
            let found = asked.iter().find(|(asked, _)| asked == place);
            found.unwrap().1.send(Err("it is broken".into())).unwrap();
        };
        answer("gone");
        answer("slow");
        assert!(!drives.settle() && drives.are_awaited());
        let why = drives.bring_up("gone").err().unwrap().to_string();
        assert!(why.starts_with("the drive at gone: it is broken"), "{why}");
        assert!(!drives.was_put_off(), "that is final");
        let dead = drives.coming.get_mut("dead").unwrap();
        dead.deadline = Time(0);
        assert!(drives.settle());
        let why = drives.bring_up("dead").err().unwrap().to_string();
        assert!(
            why.starts_with("the drive at dead: it does not come up"),
            "{why}"
        );
        drives.all_told();
        assert!(!drives.are_awaited());
        drives.keeper = None;
    }
}
