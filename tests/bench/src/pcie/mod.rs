//! Owns measuring what the NVMe driver costs: its turns beside those of a bare loop over the same
//! emulated controller.
//!
//! Driver and controller take turns in one thread; only the driver's turns are measured. In a turn all
//! commands in flight complete, and as many are submitted: an I/O costs a turn divided by the depth. The
//! bare loop has its commands made beforehand, looks at the phase tags, takes completions and rings two
//! doorbells: what no driver can do without. A doorbell of the emulated controller costs both the same,
//! and more than one of a device.
//!
//! Instructions are counted where the machine can; elsewhere a simulator of processors can count those of
//! [`Side::turn`], of one side and load at a time:
//!
//! `valgrind --tool=callgrind --collect-atstart=no --toggle-collect='*Side*turn*' corebay-bench pcie`

mod bare;
mod driver;

use std::{
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::Args;
use corebay_core::{
    arena::{Arena, Hugepages},
    reactor::MachineClock,
    units::BlockSize,
};
use corebay_nvme::emulated::{Emulated, EmulatedNamespace, EmulatedOptions};

use self::{bare::Bare, driver::Driver};
use crate::{
    instructions::Counter,
    pin::pin,
    table::{Table, command_line, median},
};

/// The blocks that are read and written.
pub const BLOCK: BlockSize = BlockSize::B4096;

/// How many there are.
pub const BLOCKS: u64 = 1 << 14;

/// Memory for payload and queues.
const MEMORY_BYTES: usize = 64 << 20;

/// A load: name, whether it writes, blocks of an I/O, I/Os at a time.
#[derive(Clone, Copy)]
pub struct Load {
    name: &'static str,
    /// It writes.
    pub write: bool,
    /// Blocks of an I/O.
    pub blocks: u64,
    /// I/Os at a time.
    pub depth: usize,
}

const fn load(name: &'static str, write: bool, blocks: u64, depth: usize) -> Load {
    Load {
        name,
        write,
        blocks,
        depth,
    }
}

const LOADS: [Load; 7] = [
    load("read-4k-qd1", false, 1, 1),
    load("read-4k-qd8", false, 1, 8),
    load("read-4k-qd32", false, 1, 32),
    load("read-4k-qd128", false, 1, 128),
    load("write-4k-qd1", true, 1, 1),
    load("write-4k-qd32", true, 1, 32),
    load("read-128k-qd32", false, 32, 32),
];

/// What to measure.
#[derive(Args)]
pub struct Arguments {
    /// How often everything is measured; medians are shown.
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Turns of each measurement.
    #[arg(long, default_value_t = 4000)]
    turns: usize,
    /// Only the loads whose name holds this (repeatable): read-4k-qd128, write-4k-qd32, ...
    #[arg(long)]
    only: Vec<String>,
    /// Only this side.
    #[arg(long, value_enum)]
    side: Option<Which>,
    /// The cpu.
    #[arg(long, default_value_t = 0)]
    cpu: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Which {
    /// The bare loop.
    Bare,
    /// The driver, its tasks and its reactor.
    Driver,
}

/// One I/O of a side.
#[derive(Clone, Copy)]
struct Sample {
    which: Which,
    nanos: f64,
    instructions: Option<f64>,
}

enum Side {
    Bare(Bare),
    Driver(Driver),
}

impl Side {
    /// One turn; the I/Os that it completed.
    #[inline(never)]
    fn turn(&mut self) -> usize {
        match self {
            Self::Bare(bare) => bare.turn(),
            Self::Driver(driver) => driver.turn(),
        }
    }
}

/// Measures and prints.
pub fn run(arguments: &Arguments) -> Result<()> {
    pin(arguments.cpu);
    let mut counter = Counter::new();
    let mut table = Table::new(&[
        "load",
        "bare ns/IO",
        "driver ns/IO",
        "diff ns",
        "bare instr/IO",
        "driver instr/IO",
    ]);
    for load in LOADS {
        let wanted = |name: &String| load.name.contains(name.as_str());
        if !arguments.only.is_empty() && !arguments.only.iter().any(wanted) {
            continue;
        }
        let mut order = vec![Which::Bare, Which::Driver];
        order.retain(|which| arguments.side.is_none_or(|only| only == *which));
        let mut samples = Vec::new();
        for _ in 0..arguments.rounds {
            for &which in &order {
                let sample = sample(which, load, arguments.turns, counter.as_mut());
                samples.push(sample.with_context(|| load.name)?);
            }
            order.reverse();
        }
        table.row(cells(load, &samples));
    }
    println!("{}\n", command_line());
    println!(
        "The side's turns alone; {} rounds of {} turns, medians.\n",
        arguments.rounds, arguments.turns
    );
    println!("{}", table.markdown());
    Ok(())
}

fn sample(
    which: Which,
    load: Load,
    turns: usize,
    mut counter: Option<&mut Counter>,
) -> Result<Sample> {
    let arena = Arena::new(MEMORY_BYTES, Hugepages::Auto).context("memory")?;
    let emulated = Emulated::new(EmulatedOptions {
        namespaces: vec![EmulatedNamespace::new(BLOCK, BLOCKS)],
        ..EmulatedOptions::default()
    });
    let clock = MachineClock::new();
    let mut side = match which {
        Which::Bare => Side::Bare(Bare::start(&emulated, arena, load, clock)?),
        Which::Driver => Side::Driver(Driver::start(&emulated, arena, load, clock)?),
    };
    let emulated = Rc::new(emulated);
    let device = || while emulated.poll(clock.now()) > 0 {};
    for _ in 0..turns / 10 + 1 {
        device();
        side.turn();
    }
    let mut nanos = Vec::with_capacity(turns);
    let mut instructions = Vec::with_capacity(turns);
    for _ in 0..turns {
        device();
        let count = counter.as_mut().and_then(|counter| counter.read());
        let before = Instant::now();
        let completed = side.turn();
        let took = before.elapsed().saturating_sub(of_the_clock());
        let counted = counter.as_mut().and_then(|counter| counter.read());
        // The driver's keeper has a turn now and then.
        ensure!(completed > 0, "a turn completed nothing");
        if completed == load.depth {
            nanos.push(took.as_nanos() as f64);
            instructions.extend(
                counted
                    .zip(count)
                    .map(|(after, before)| (after - before) as f64),
            );
        }
    }
    ensure!(nanos.len() > turns / 2, "too few turns complete everything");
    let depth = load.depth as f64;
    Ok(Sample {
        which,
        nanos: median(nanos) / depth,
        instructions: Some(median(instructions) / depth).filter(|count| !count.is_nan()),
    })
}

/// What looking at the clock costs.
fn of_the_clock() -> Duration {
    use std::sync::OnceLock;
    static COST: OnceLock<Duration> = OnceLock::new();
    *COST.get_or_init(|| {
        let looks = (0..10_001).map(|_| Instant::now().elapsed().as_nanos() as f64);
        Duration::from_nanos(median(looks) as u64)
    })
}

fn cells(load: Load, samples: &[Sample]) -> Vec<String> {
    let of = |which: Which| samples.iter().filter(move |sample| sample.which == which);
    let nanos = |which: Which| median(of(which).map(|sample| sample.nanos));
    let instructions = |which: Which| median(of(which).filter_map(|sample| sample.instructions));
    let cell = |value: f64, signed: bool| match (value.is_nan(), signed) {
        (true, _) => "-".to_owned(),
        (_, true) => format!("{value:+.0}"),
        (_, false) => format!("{value:.0}"),
    };
    let (bare, driver) = (nanos(Which::Bare), nanos(Which::Driver));
    vec![
        load.name.to_owned(),
        cell(bare, false),
        cell(driver, false),
        cell(driver - bare, true),
        cell(instructions(Which::Bare), false),
        cell(instructions(Which::Driver), false),
    ]
}

/// Blocks in an order that no cache guesses, the same for both sides.
#[derive(Clone, Copy)]
pub struct Places(u64);

impl Places {
    /// From the beginning.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Where the next I/O begins.
    pub fn next(&mut self, blocks: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 33) % (BLOCKS / blocks) * blocks
    }
}
