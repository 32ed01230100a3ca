//! Owns the measurement of arrays: what they cost beside their members' own work, how near a small
//! write is to what its member I/Os cost, what the journal costs, and how fast a rebuild is.
//!
//! Invariants:
//! - What is compared is measured in turns, in one pinned thread, by that thread's processor time. The
//!   best round counts: in the others the machine had something else to do.
//! - The limit of a request is the sum of the member I/Os that it makes, each at the cost that a
//!   member alone has for it under the same load.

mod rig;

use std::{rc::Rc, time::Duration};

use anyhow::{Context, Result, anyhow};
use clap::Args;
use corebay_core::rng::Rng;
use corebay_raid::{
    geometry::{Consistency, Level, Wish},
    sweep::Pace,
};

use crate::{
    instructions::cpu_time,
    pin::pin,
    table::{Table, command_line},
};
use rig::{Core, Cost, Kind, Load, Member, SIZE, Workers, array};

/// What to measure.
#[derive(Args)]
pub struct Arguments {
    /// How often everything is measured; the best counts.
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// Milliseconds of each measurement.
    #[arg(long, default_value_t = 40)]
    milliseconds: u64,
    /// Requests at a time.
    #[arg(long, default_value_t = 32)]
    depth: usize,
    /// The cpu to measure on.
    #[arg(long, default_value_t = 0)]
    cpu: usize,
}

/// The bytes of each member.
const MEMBER_BYTES: u64 = 256 << 20;

/// How long a command takes on the members whose rebuild is measured.
const COMMAND: Duration = Duration::from_micros(80);

const LEVELS: &[(&str, Level, usize)] = &[
    ("RAID 0, 4 members", Level::Striped, 4),
    ("RAID 1, 2", Level::Mirrored, 2),
    ("RAID 10, 4", Level::StripedMirrors, 4),
    ("RAID 5, 4+1", Level::Raid5, 5),
    ("RAID 6, 4+2", Level::Raid6, 6),
    ("ec 8+3", Level::ErasureCode { data: 8, parity: 3 }, 11),
];

/// Measures and prints.
pub fn run(arguments: &Arguments) -> Result<()> {
    pin(arguments.cpu);
    println!("    {}\n", command_line());
    overhead(arguments)?;
    small_writes(arguments)?;
    rebuild()
}

fn wish(level: Level, roles: usize, consistency: Consistency) -> Wish {
    Wish {
        consistency,
        ..Wish::new(level, roles, SIZE)
    }
}

/// Measures several loads in turns; the best of each.
fn best(core: &Core, arguments: &Arguments, all: &[Workers]) -> Vec<Cost> {
    let time = Duration::from_millis(arguments.milliseconds);
    let unknown = Cost {
        nanos: f64::INFINITY,
        instructions: f64::INFINITY,
    };
    let mut costs = vec![unknown; all.len()];
    for _ in 0..arguments.rounds {
        for (workers, cost) in all.iter().zip(&mut costs) {
            let now = workers.measure(core, time);
            cost.nanos = cost.nanos.min(now.nanos);
            cost.instructions = cost.instructions.min(now.instructions);
        }
    }
    costs
}

/// Measures one load on one disk.
fn measure<D: corebay_core::disk::Disk>(
    arguments: &Arguments,
    load: Load,
    open: impl Fn(&Core) -> Result<D>,
) -> Result<Cost> {
    let core = Core::new()?;
    let disk = Rc::new(open(&core)?);
    let workers = Workers::start(&core, &disk, load)?;
    // The first touch of memory is not measured.
    workers.measure(&core, Duration::from_millis(arguments.milliseconds));
    let cost = best(&core, arguments, std::slice::from_ref(&workers));
    workers.end(&core)?;
    core.reactor.tear_down();
    cost.first().copied().context("one load")
}

/// What an I/O costs over members that keep nothing.
fn overhead(arguments: &Arguments) -> Result<()> {
    println!("What a 4 KiB I/O costs over members that keep nothing:\n");
    let mut table = Table::new(&[
        "disk",
        "read ns",
        "instr.",
        "write ns",
        "instr.",
        "member I/Os",
        "ns each",
    ]);
    let load = |writes| Load {
        writes,
        bytes: SIZE.bytes(),
        depth: arguments.depth,
    };
    let mut row = |name: &str, [read, write]: [Cost; 2], transfers: usize| {
        table.row(vec![
            name.to_owned(),
            format!("{:.0}", read.nanos),
            count(read.instructions),
            format!("{:.0}", write.nanos),
            count(write.instructions),
            transfers.to_string(),
            format!("{:.0}", write.nanos / transfers as f64),
        ]);
    };
    let bare = |core: &Core| Member::new(Kind::Null, MEMBER_BYTES, core);
    let costs = [
        measure(arguments, load(false), bare)?,
        measure(arguments, load(true), bare)?,
    ];
    row("a member alone", costs, 1);
    for &(name, level, roles) in LEVELS {
        for consistency in [Consistency::Journal, Consistency::DirtyRegions] {
            let wish = wish(level, roles, consistency);
            let transfers = transfers(level, consistency);
            let has_parity = transfers.reads > 0;
            if !has_parity && consistency == Consistency::DirtyRegions {
                continue;
            }
            let open = |core: &Core| array(core, wish, Kind::Null, MEMBER_BYTES);
            let costs = [
                measure(arguments, load(false), open)?,
                measure(arguments, load(true), open)?,
            ];
            let name = match (has_parity, consistency) {
                (true, Consistency::Journal) => format!("{name}, journal"),
                (true, Consistency::DirtyRegions) => format!("{name}, dirty regions"),
                (false, _) => name.to_owned(),
            };
            row(
                &name,
                costs,
                transfers.reads + transfers.journal + transfers.writes,
            );
        }
    }
    println!("{}", table.markdown());
    Ok(())
}

/// Instructions, where the machine counts them.
fn count(instructions: f64) -> String {
    match instructions.is_finite() {
        true => format!("{instructions:.0}"),
        false => "-".into(),
    }
}

/// The member I/Os of one small write.
struct Transfers {
    reads: usize,
    journal: usize,
    writes: usize,
}

fn transfers(level: Level, consistency: Consistency) -> Transfers {
    let changed = match level {
        Level::Striped => 1,
        Level::Mirrored | Level::StripedMirrors | Level::Raid5 => 2,
        Level::Raid6 => 3,
        Level::ErasureCode { parity, .. } => 1 + usize::from(parity),
    };
    let parity = matches!(
        level,
        Level::Raid5 | Level::Raid6 | Level::ErasureCode { .. }
    );
    let journaled = parity && consistency == Consistency::Journal;
    Transfers {
        // With four data strips, reading what does not change is as little as reading what does.
        reads: if parity { changed } else { 0 },
        journal: if journaled { changed } else { 0 },
        writes: changed,
    }
}

/// Random writes of 4 KiB against the sum of their member I/Os.
fn small_writes(arguments: &Arguments) -> Result<()> {
    println!("Random writes of 4 KiB over ram disks, against the sum of their member I/Os:\n");
    let alone = |writes, blocks: usize| {
        let load = Load {
            writes,
            bytes: blocks * SIZE.bytes(),
            depth: arguments.depth,
        };
        measure(arguments, load, |core| {
            Member::new(Kind::Ram, MEMBER_BYTES, core)
        })
    };
    // A journal record is its block and a header.
    let (read, write, record) = (alone(false, 1)?, alone(true, 1)?, alone(true, 2)?);
    let mut table = Table::new(&[
        "array",
        "ns",
        "reads",
        "journal",
        "in place",
        "limit ns",
        "of the limit",
    ]);
    for &(name, level, roles) in &LEVELS[3..] {
        for consistency in [Consistency::Journal, Consistency::DirtyRegions] {
            let wish = wish(level, roles, consistency);
            let load = Load {
                writes: true,
                bytes: SIZE.bytes(),
                depth: arguments.depth,
            };
            let cost = measure(arguments, load, |core| {
                array(core, wish, Kind::Ram, MEMBER_BYTES)
            })?;
            let of = transfers(level, consistency);
            let limit = of.reads as f64 * read.nanos
                + of.journal as f64 * record.nanos
                + of.writes as f64 * write.nanos;
            let word = match consistency {
                Consistency::Journal => "journal",
                Consistency::DirtyRegions => "dirty regions",
            };
            table.row(vec![
                format!("{name}, {word}"),
                format!("{:.0}", cost.nanos),
                of.reads.to_string(),
                of.journal.to_string(),
                of.writes.to_string(),
                format!("{limit:.0}"),
                format!("{:.0} %", 100.0 * limit / cost.nanos),
            ]);
        }
    }
    println!("{}", table.markdown());
    println!(
        "A ram disk alone: read {:.0} ns, write {:.0} ns, write of 8 KiB {:.0} ns.\n",
        read.nanos, write.nanos, record.nanos
    );
    Ok(())
}

/// How fast a member is rebuilt and an array scrubbed.
fn rebuild() -> Result<()> {
    println!(
        "Rebuild and scrub of members whose commands take {} us, in MiB of each member per second:\n",
        COMMAND.as_micros()
    );
    let mut table = Table::new(&[
        "array",
        "rebuild",
        "one stripe at a time",
        "scrub",
        "one stripe at a time",
        "processor",
    ]);
    for &(name, level, roles) in &LEVELS[1..] {
        let wish = wish(level, roles, Consistency::Journal);
        let [rebuild, scrub, share] = sweep(wish)?;
        let strip = f64::from(wish.strip_bytes) / f64::from(1 << 20);
        let serial = |commands: f64| strip / (commands * COMMAND.as_secs_f64());
        table.row(vec![
            name.to_owned(),
            format!("{rebuild:.0}"),
            format!("{:.0}", serial(2.0)),
            format!("{scrub:.0}"),
            format!("{:.0}", serial(1.0)),
            format!("{:.0} %", share * 100.0),
        ]);
    }
    println!("{}", table.markdown());
    Ok(())
}

fn sweep(wish: Wish) -> Result<[f64; 3]> {
    let core = Core::new()?;
    let bytes = MEMBER_BYTES / 2;
    let array = Rc::new(array(&core, wish, Kind::Slow(COMMAND), bytes)?);
    let fresh = Member::new(Kind::Slow(COMMAND), bytes, &core)?;
    let scratch = rig::memory(4 << 20)?;
    let (clock, replacing) = (corebay_core::reactor::MachineClock::new(), array.clone());
    let geometry = array.assembled().geometry();
    let mib = (geometry.stripes() * u64::from(geometry.strip_bytes())) as f64 / f64::from(1 << 20);
    let replaced = core.run(async move {
        replacing.give_up(0).await?;
        replacing.set_member(0, Some(fresh));
        replacing.replace(0, &mut Rng::from_seed(2), &scratch).await
    })?;
    replaced.map_err(|error| anyhow!("{error}"))?;
    let (began, used) = (clock.now(), cpu_time());
    let rebuilding = array.clone();
    let rebuilt = core.run(async move { rebuilding.rebuild(0, Pace::default()).await })?;
    rebuilt.map_err(|error| anyhow!("{error}"))?;
    let (rebuilt, middle) = (clock.now().since(began), clock.now());
    let share = (cpu_time() - used).as_secs_f64() / rebuilt.as_secs_f64();
    let scrubbed = core.run(async move { array.scrub(Pace::default()).await })?;
    scrubbed.map_err(|error| anyhow!("{error}"))?;
    let scrubbed = clock.now().since(middle);
    core.reactor.tear_down();
    Ok([
        mib / rebuilt.as_secs_f64(),
        mib / scrubbed.as_secs_f64(),
        share,
    ])
}
