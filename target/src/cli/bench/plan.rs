//! What a run does, checked against the namespace: the same for all cores.
//!
//! Invariant: every unit lies in the namespace, and its commands within the controller's limits.

use std::{net::SocketAddr, time::Duration};

use corebay_core::buffer::BLOCK_BYTES_MAX;
use corebay_nvme::{
    fabrics::{ControllerOptions, Facts, HostIdentity, LostCommands, Namespace, Recovery},
    spec::{command::nvm, nqn::Nqn},
};

use super::{
    super::{failure::Failure, id::size},
    args::{Args, Pattern, Rw},
};

/// The most units of which --verify remembers what was written: 4 bytes of memory each.
const VERIFY_UNITS_MAX: u64 = 1 << 30;

/// See the module.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where the subsystem is.
    pub address: SocketAddr,
    /// The subsystem.
    pub nqn: Nqn,
    /// As whom to connect.
    pub identity: HostIdentity,
    /// The options as they were given.
    pub args: Args,
    /// The CPUs to poll on.
    pub cpus: Vec<u32>,
    /// The I/O queues of all cores.
    pub queues: u16,
    /// The bytes of one of the namespace's blocks.
    pub lba_bytes: u32,
    /// The namespace's blocks.
    pub namespace_blocks: u64,
    /// The bytes of one command's data.
    pub unit_bytes: u32,
    /// The blocks of one command.
    pub unit_blocks: u32,
    /// How many units are used, from the namespace's start.
    pub units: u64,
    /// Of 100 commands, how many read.
    pub read_percent: u32,
}

/// Where a run goes, before it is known what is there.
#[derive(Clone, Debug)]
pub struct Place {
    /// Where the subsystem is.
    pub address: SocketAddr,
    /// The subsystem.
    pub nqn: Nqn,
    /// As whom to connect.
    pub identity: HostIdentity,
}

impl Plan {
    /// Checks what was asked for against what is there.
    ///
    /// # Errors
    /// What does not fit, and what would.
    pub fn new(
        args: Args,
        place: Place,
        facts: &Facts,
        namespace: &Namespace,
    ) -> Result<Self, Failure> {
        check_allowed(&args, &place, namespace)?;
        let unit_bytes = unit_bytes(&args, facts, namespace)?;
        let units = units(&args, namespace, unit_bytes)?;
        let cpus = cpus(&args)?;
        let queues = args.queues.unwrap_or_else(|| fitting(cpus.len()));
        if usize::from(queues) < cpus.len() {
            return Err(Failure::new(
                format!(
                    "{queues} queues leave some of {} cores without work",
                    cpus.len()
                ),
                "give --queues at least one for each of --cores",
            ));
        }
        check_units(&args, queues, units, unit_bytes)?;
        let read_percent = match args.rw {
            Rw::Read => 100,
            Rw::Write => 0,
            Rw::Mixed => args.read_percent,
        };
        Ok(Self {
            address: place.address,
            nqn: place.nqn,
            identity: place.identity,
            cpus,
            queues,
            lba_bytes: namespace.block_bytes,
            namespace_blocks: namespace.blocks,
            unit_bytes,
            unit_blocks: unit_bytes / namespace.block_bytes,
            units,
            read_percent,
            args,
        })
    }

    /// The queues of core `index`.
    pub fn queues_of(&self, index: usize) -> u16 {
        let cores = self.cpus.len();
        let queues = usize::from(self.queues);
        fitting(queues / cores + usize::from(index < queues % cores))
    }

    /// The queues of the cores before `index`.
    pub fn queues_before(&self, index: usize) -> u64 {
        (0..index).map(|core| u64::from(self.queues_of(core))).sum()
    }

    /// How core `index` connects.
    pub fn controller(&self, index: usize) -> ControllerOptions {
        let mut options =
            ControllerOptions::new(self.address, self.nqn.clone(), self.identity.clone());
        options.digests = self.args.host.digests();
        options.io_queues = self.queues_of(index);
        options.depth = self.args.depth;
        if self.args.reconnect {
            options.recovery = Recovery::Reconnect {
                delay_min: Duration::from_millis(100),
                delay_max: Duration::from_secs(2),
                give_up_after: Duration::from_secs(60),
                // The one who measures is the only writer, and each of its slots writes its own
                // units one at a time: a late first copy is followed by nothing it could destroy.
                commands: LostCommands::Replay {
                    after: Duration::ZERO,
                },
            };
        }
        options
    }

    /// The first block of a unit.
    pub fn slba(&self, unit: u64) -> u64 {
        unit * u64::from(self.unit_blocks)
    }

    /// One line that says what is done.
    pub fn describe(&self) -> String {
        let mut what = format!("{} {}", self.args.pattern.name(), self.args.rw.name());
        if self.args.rw == Rw::Mixed {
            what += &format!(" ({} % reads)", self.read_percent);
        }
        let unit = size(u128::from(self.unit_bytes));
        what += &format!(
            ", {unit}, {} {} x depth {}",
            self.queues,
            if self.queues == 1 { "queue" } else { "queues" },
            self.args.depth
        );
        let cpus: Vec<String> = self.cpus.iter().map(u32::to_string).collect();
        what += &format!(", on CPU {}", cpus.join(","));
        if let Some(rate) = self.args.rate {
            what += &format!(", {rate} a second");
        }
        what
    }
}

/// Checks that the namespace may be used as asked.
fn check_allowed(args: &Args, place: &Place, namespace: &Namespace) -> Result<(), Failure> {
    if args.rw != Rw::Read && !args.overwrite {
        return Err(Failure::new(
            format!(
                "--rw {} would destroy what namespace {} of {} holds",
                args.rw.name(),
                namespace.nsid,
                place.nqn
            ),
            "add --overwrite to allow it, or measure with --rw read",
        ));
    }
    if namespace.metadata_bytes > 0 {
        return Err(Failure::new(
            format!("namespace {} is formatted with metadata", namespace.nsid),
            "choose a namespace without metadata with --nsid",
        ));
    }
    Ok(())
}

/// Checks that there are units enough, and not too many to remember.
fn check_units(args: &Args, queues: u16, units: u64, unit_bytes: u32) -> Result<(), Failure> {
    let slots = u64::from(queues) * u64::from(args.depth);
    if (args.verify || args.pattern == Pattern::Sequential) && units < slots {
        return Err(Failure::new(
            format!("{units} units of {unit_bytes} B are too few for {slots} commands in flight"),
            "use a larger --span, or a smaller --depth or --block-size",
        ));
    }
    if args.verify && units > VERIFY_UNITS_MAX {
        return Err(Failure::new(
            format!("--verify would have to remember {units} units, 4 bytes each"),
            "use a part of the namespace with --span, or a larger --block-size",
        ));
    }
    Ok(())
}

fn fitting(count: usize) -> u16 {
    u16::try_from(count).unwrap_or(u16::MAX)
}

fn unit_bytes(args: &Args, facts: &Facts, namespace: &Namespace) -> Result<u32, Failure> {
    let asked = args.block_size.bytes();
    let lba = u64::from(namespace.block_bytes);
    let limit = (BLOCK_BYTES_MAX as u64)
        .min(facts.transfer_bytes_max().unwrap_or(u64::MAX))
        .min(lba * u64::from(nvm::BLOCKS_MAX));
    if asked == 0 || !asked.is_multiple_of(lba) {
        return Err(Failure::new(
            format!(
                "--block-size {} is no whole number of the namespace's blocks of {lba} B",
                args.block_size
            ),
            format!("use a multiple of {lba} B"),
        ));
    }
    match u32::try_from(asked) {
        Ok(bytes) if asked <= limit => Ok(bytes),
        _ => Err(Failure::new(
            format!("--block-size {} is too large", args.block_size),
            format!(
                "the most for one command of this controller is {}",
                size(u128::from(limit))
            ),
        )),
    }
}

fn units(args: &Args, namespace: &Namespace, unit_bytes: u32) -> Result<u64, Failure> {
    let all = u128::from(namespace.blocks) * u128::from(namespace.block_bytes);
    let span = match args.span {
        Some(span) if u128::from(span.bytes()) > all => {
            return Err(Failure::new(
                format!("--span {span} is more than the namespace's {}", size(all)),
                "use a smaller one, or leave it away",
            ));
        }
        Some(span) => u128::from(span.bytes()),
        None => all,
    };
    match u64::try_from(span / u128::from(unit_bytes)) {
        Ok(units) if units > 0 => Ok(units),
        _ => Err(Failure::new(
            format!("{} hold no unit of {unit_bytes} B", size(span)),
            "use a smaller --block-size or a larger --span",
        )),
    }
}

/// The CPUs to poll on.
fn cpus(args: &Args) -> Result<Vec<u32>, Failure> {
    let allowed = rustix::thread::sched_getaffinity(None).map_err(|error| {
        let message = format!("cannot find out which CPUs may be used: {error}");
        Failure::new(message, "")
    })?;
    let usable: Vec<u32> = (0..rustix::thread::CpuSet::MAX_CPU)
        .filter(|&cpu| allowed.is_set(cpu))
        .filter_map(|cpu| u32::try_from(cpu).ok())
        .collect();
    if args.cores.is_empty() {
        return Ok(usable.last().copied().into_iter().collect());
    }
    let mut seen = Vec::new();
    for &cpu in &args.cores {
        let wrong = if !usable.contains(&cpu) {
            "is not one that may be used"
        } else if seen.contains(&cpu) {
            "is named twice"
        } else {
            seen.push(cpu);
            continue;
        };
        let list: Vec<String> = usable.iter().map(u32::to_string).collect();
        return Err(Failure::new(
            format!("CPU {cpu} in --cores {wrong}"),
            format!("choose from {}", list.join(",")),
        ));
    }
    Ok(seen)
}
