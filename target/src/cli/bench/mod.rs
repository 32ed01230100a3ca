//! `corebay bench`: measures a target, as the field's tools do, with this host.
//!
//! One thread and one controller for each core; a task for each command in flight. Nothing is shared
//! between cores while it is measured but counters that only their core writes.

mod args;
mod content;
mod job;
mod plan;
mod report;
mod stats;
#[cfg(test)]
mod tests;
mod worker;

use std::{
    io::{IsTerminal, Write},
    process::ExitCode,
    rc::Rc,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::Duration,
};

use corebay_core::{
    arena::{Arena, Hugepages},
    net::os::OsNetwork,
    reactor::MachineClock,
    units::Time,
};
use corebay_nvme::{
    fabrics::{Controller, Facts, Host, Namespace},
    spec::tcp::PORT_IO,
};
use signal_hook::{consts::SIGINT, flag};

pub use args::Args;

use self::{
    args::Rw,
    plan::{Place, Plan},
    stats::{Live, Stats},
    worker::{Part, Shared},
};
use super::{
    Format,
    failure::Failure,
    id::size,
    session::{self, explain},
};

/// How often the main thread looks at the others.
const LOOK: Duration = Duration::from_millis(20);

/// How often progress is shown.
const PROGRESS: Duration = Duration::from_secs(1);

/// Measures, and prints the results.
pub fn run(args: Args) -> ExitCode {
    let output = args.output;
    match measure(args) {
        Ok(outcome) => {
            match output {
                Format::Text => print!("{}", report::as_text(&outcome.plan, &outcome.stats)),
                Format::Json => {
                    let Outcome {
                        plan,
                        stats,
                        notes,
                        interrupted,
                    } = &outcome;
                    let value = report::as_json(plan, stats, notes, *interrupted);
                    println!("{value:#}");
                }
            }
            let stats = &outcome.stats;
            if stats.error_count() == 0 && stats.verify.mismatched == 0 {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
        Err(failure) => failure.report("bench"),
    }
}

/// What a run came to.
struct Outcome {
    plan: Arc<Plan>,
    stats: Stats,
    notes: Vec<String>,
    interrupted: bool,
}

fn measure(args: Args) -> Result<Outcome, Failure> {
    let plan = Arc::new(look(args)?);
    let interrupted = Arc::new(AtomicBool::new(false));
    // The first Ctrl-C ends the run with its results, a second one at once.
    flag::register_conditional_shutdown(SIGINT, 130, interrupted.clone())
        .and_then(|_| flag::register(SIGINT, interrupted.clone()))
        .map_err(|error| Failure::new(format!("cannot wait for signals: {error}"), ""))?;
    let shared = Arc::new(Shared {
        ready: AtomicUsize::new(0),
        go: AtomicBool::new(false),
        interrupted: interrupted.clone(),
        failure: Mutex::new(None),
        notes: Mutex::new(Vec::new()),
    });
    let clock = MachineClock::new();
    let (threads, lives) = start(&plan, &shared, clock)?;
    let (ended, end) = mpsc::channel::<()>();
    let watch = Watch {
        plan: &plan,
        shared: &shared,
        lives: &lives,
        clock,
        end,
    };
    let stats = watch.until_all_have_ended(threads);
    drop(ended);
    if let Some(failure) = shared.failure.lock().expect("nobody panics").take() {
        return Err(failure);
    }
    let notes = shared.notes.lock().expect("nobody panics").clone();
    Ok(Outcome {
        plan,
        stats,
        notes,
        interrupted: interrupted.load(Ordering::Relaxed),
    })
}

/// Finds out what is there, and plans the run.
fn look(args: Args) -> Result<Plan, Failure> {
    let address = args.address.resolve(PORT_IO)?;
    let identity = args.host.identity()?;
    let asked = args.clone();
    let found = session::run(move |host| async move {
        let (nqn, address) = match asked.nqn.clone() {
            Some(nqn) => (nqn, address),
            None => session::only_subsystem(&host, address, &identity).await?,
        };
        let place = Place {
            address,
            nqn,
            identity,
        };
        let (facts, namespace) = identify(&host, &place, &asked).await?;
        Ok((place, facts, namespace))
    })?;
    let (place, facts, namespace) = found;
    Plan::new(args, place, &facts, &namespace)
}

async fn identify(
    host: &Rc<Host<OsNetwork>>,
    place: &Place,
    args: &Args,
) -> Result<(Facts, Namespace), Failure> {
    let failed = |what: &str, error| explain(what, place.address, &error);
    let mut options = corebay_nvme::fabrics::ControllerOptions::new(
        place.address,
        place.nqn.clone(),
        place.identity.clone(),
    );
    options.io_queues = 0;
    options.digests = args.host.digests();
    let controller = Controller::connect(host, options).await;
    let controller = controller.map_err(|error| failed("connect", error))?;
    let facts = controller
        .facts()
        .map_err(|error| failed("identify the controller", error))?;
    let namespace = controller.namespace(args.nsid).await.map_err(|error| {
        let what = format!("identify namespace {}", args.nsid);
        let failure = failed(&what, error);
        Failure::new(
            failure.to_string(),
            "`corebay id` lists the namespaces; choose one with --nsid",
        )
    })?;
    let _ = controller.shutdown().await;
    Ok((facts, namespace))
}

type Threads = Vec<JoinHandle<Stats>>;

fn start(
    plan: &Arc<Plan>,
    shared: &Arc<Shared>,
    clock: MachineClock,
) -> Result<(Threads, Vec<Arc<Live>>), Failure> {
    let cores = plan.cpus.len();
    let needed: usize = (0..cores)
        .map(|core| worker::memory_bytes(plan, core))
        .sum();
    let mut arena = Arena::new(needed, Hugepages::Auto).map_err(|error| {
        Failure::new(error.to_string(), "use a smaller --depth or --block-size")
    })?;
    let mut threads = Vec::new();
    let mut lives = Vec::new();
    for index in 0..cores {
        let live = Arc::new(Live::default());
        let part = Part {
            index,
            plan: plan.clone(),
            region: arena
                .take(worker::memory_bytes(plan, index))
                .expect("the arena has the sum"),
            live: live.clone(),
            shared: shared.clone(),
            clock,
        };
        let thread = std::thread::Builder::new()
            .name(format!("bench-{index}"))
            .spawn(move || worker::run(part))
            .map_err(|error| Failure::new(format!("cannot start a thread: {error}"), ""))?;
        threads.push(thread);
        lives.push(live);
    }
    Ok((threads, lives))
}

/// The main thread's view of a run.
struct Watch<'a> {
    plan: &'a Plan,
    shared: &'a Shared,
    lives: &'a [Arc<Live>],
    clock: MachineClock,
    /// Never gives anything: waiting for it is how this thread pauses.
    end: mpsc::Receiver<()>,
}

impl Watch<'_> {
    fn until_all_have_ended(&self, threads: Threads) -> Stats {
        let text = self.plan.args.output == Format::Text;
        let mut go_at = None;
        let mut shown = (self.clock.now(), 0);
        while threads.iter().any(|thread| !thread.is_finished()) {
            let ready = self.shared.ready.load(Ordering::Relaxed) == self.plan.cpus.len();
            if go_at.is_none() && ready {
                if text {
                    self.introduce();
                }
                self.shared.go.store(true, Ordering::Relaxed);
                shown = (self.clock.now(), 0);
                go_at = Some(shown.0);
            }
            let _ = self.end.recv_timeout(LOOK);
            let now = self.clock.now();
            if let Some(go_at) = go_at
                && now.since(shown.0) >= PROGRESS
            {
                shown = self.show(now, shown, go_at);
            }
        }
        clear_progress();
        let mut all = Stats::new();
        for thread in threads {
            match thread.join() {
                Ok(stats) => all.add(stats),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        all
    }

    fn introduce(&self) {
        let plan = self.plan;
        let bytes = u128::from(plan.namespace_blocks) * u128::from(plan.lba_bytes);
        println!(
            "{} namespace {} at {}: {}, blocks of {} B",
            plan.nqn,
            plan.args.nsid,
            plan.address,
            size(bytes),
            plan.lba_bytes
        );
        println!("{}", plan.describe());
        for note in self.shared.notes.lock().expect("nobody panics").iter() {
            eprintln!("note: {note}");
        }
        if plan.args.rw != Rw::Read {
            let used = plan.units * u64::from(plan.unit_bytes);
            let used = size(u128::from(used));
            eprintln!("note: writing over the first {used} of the namespace");
        }
    }

    /// Shows what happened since the last time; gives the new time and count.
    fn show(&self, now: Time, last: (Time, u64), go_at: Time) -> (Time, u64) {
        let sum = |of: fn(&Live) -> &std::sync::atomic::AtomicU64| -> u64 {
            let counts = self.lives.iter().map(|live| of(live));
            counts.map(|count| count.load(Ordering::Relaxed)).sum()
        };
        let (ios, errors) = (sum(|live| &live.ios), sum(|live| &live.errors));
        let read_back = sum(|live| &live.read_back);
        if std::io::stderr().is_terminal() {
            let seconds = now.since(last.0).as_secs_f64();
            let iops = (ios - last.1) as f64 / seconds;
            let mbs = iops * f64::from(self.plan.unit_bytes) / 1e6;
            let elapsed = now.since(go_at).as_secs();
            let mut line = format!("{elapsed} s: {} IOPS, {mbs:.1} MB/s", report::rate(iops));
            if read_back > 0 {
                line = format!("{elapsed} s: reading back, {read_back} units");
            }
            if errors > 0 {
                line += &format!(", {errors} errors");
            }
            eprint!("\r\x1b[K{line}");
            let _ = std::io::stderr().flush();
        }
        (now, ios)
    }
}

fn clear_progress() {
    if std::io::stderr().is_terminal() {
        eprint!("\r\x1b[K");
    }
}
