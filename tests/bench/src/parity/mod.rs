//! Owns the comparison of the arrays' kernels with those of ISA-L and of reed-solomon-erasure: making
//! parity, and restoring as many lost data members as there are parity members.
//!
//! Invariants:
//! - All candidates work on the same memory, one at a time, in one pinned thread, in turns; what is
//!   counted is that thread's processor time.
//! - What a candidate made is compared with what ours made before anything is measured.
//! - Nothing that could be prepared once for an array is measured: tables, inverted matrices, lists of
//!   strips.

mod candidate;
mod isal;

use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Args;
use corebay_raid::kernels::{Codec, Level};

use crate::{
    pin::pin,
    table::{Table, command_line, median},
};
use candidate::{Candidate, Stripe};
use isal::Isal;

/// What to measure.
#[derive(Args)]
pub struct Arguments {
    /// How often everything is measured; medians are shown.
    #[arg(long, default_value_t = 41)]
    rounds: usize,
    /// Milliseconds of each measurement.
    #[arg(long, default_value_t = 2)]
    milliseconds: u64,
    /// Only the codes whose name holds this (repeatable): xor-4+1, pq-8+2, rs-8+3, ...
    #[arg(long)]
    only: Vec<String>,
    /// Sizes of a strip in KiB.
    #[arg(long, value_delimiter = ',', default_values_t = [4, 16, 64, 128])]
    strips: Vec<usize>,
    /// Stripes that take turns; with one, strips stay in the caches as far as they fit.
    #[arg(long, default_value_t = 1)]
    stripes: usize,
    /// The cpu to measure on.
    #[arg(long, default_value_t = 0)]
    cpu: usize,
}

/// A code: its name, and how it is made.
type Code = (&'static str, fn() -> Codec);

const CODES: &[Code] = &[
    ("rs-4+1", || Codec::new(4, 1).expect("a valid size")),
    ("rs-4+2", || Codec::new(4, 2).expect("a valid size")),
    ("rs-8+2", || Codec::new(8, 2).expect("a valid size")),
    ("rs-8+3", || Codec::new(8, 3).expect("a valid size")),
    ("xor-4+1", || Codec::xor(4).expect("a valid size")),
    ("pq-4+2", || Codec::pq(4).expect("a valid size")),
    ("pq-8+2", || Codec::pq(8).expect("a valid size")),
];

/// What is done with stripes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Parity is made of data.
    Encode,
    /// The first data members are restored, as many as there are parity members.
    Decode,
}

/// Measures and prints.
pub fn run(arguments: &Arguments) -> Result<()> {
    let is_wanted =
        |name: &str| arguments.only.is_empty() || arguments.only.iter().any(|o| name.contains(o));
    let codes: Vec<&Code> = CODES.iter().filter(|(name, _)| is_wanted(name)).collect();
    ensure!(!codes.is_empty(), "no code has such a name");
    ensure!(arguments.rounds > 0, "at least one round");
    ensure!(arguments.stripes > 0, "at least one stripe");
    ensure!(
        arguments
            .strips
            .iter()
            .all(|&kib| (1..=1024).contains(&kib)),
        "a strip has 1 to 1024 KiB"
    );
    pin(arguments.cpu);
    let isal = Isal::open();
    println!("{}\n", command_line());
    println!(
        "GB/s of data on one cpu, medians of {} turns of {} ms; {}.",
        arguments.rounds,
        arguments.milliseconds,
        match arguments.stripes {
            1 => "one stripe again and again".to_owned(),
            stripes => format!("{stripes} stripes in turn"),
        }
    );
    let has = |level: &Level| level.is_available();
    let names = |levels: Vec<Level>| match levels.is_empty() {
        true => "none".to_owned(),
        false => levels
            .iter()
            .map(Level::to_string)
            .collect::<Vec<_>>()
            .join(", "),
    };
    println!(
        "Kernels of this cpu: {}; not of this cpu: {}.",
        names(Level::available().collect()),
        names(Level::ALL.into_iter().filter(|level| !has(level)).collect()),
    );
    println!(
        "r-s-e: reed-solomon-erasure without its C kernels; it knows neither XOR nor P+Q. Ratios are \
         medians over the turns' own pairs, with their middle half.\n"
    );
    for work in [Work::Encode, Work::Decode] {
        println!(
            "{}",
            measure_all(work, &codes, isal.as_ref(), arguments)?.markdown()
        );
    }
    Ok(())
}

fn measure_all(
    work: Work,
    codes: &[&Code],
    isal: Option<&Isal>,
    arguments: &Arguments,
) -> Result<Table> {
    let levels: Vec<String> = Level::available().map(|level| level.to_string()).collect();
    let mut head = vec![
        match work {
            Work::Encode => "encode",
            Work::Decode => "decode",
        },
        "strip KiB",
    ];
    head.extend(levels.iter().map(String::as_str));
    head.extend(["ISA-L", "r-s-e", "ours/ISA-L", "middle half"]);
    let mut table = Table::new(&head);
    for (name, codec) in codes {
        for &kib in &arguments.strips {
            let codec = codec();
            let mut stripes: Vec<Stripe> = (0..arguments.stripes)
                .map(|_| Stripe::new(&codec, kib << 10))
                .collect();
            let mut candidates = candidate::all(work, &codec, isal)?;
            for candidate in &mut candidates {
                candidate.check(work, &codec, &mut stripes)?;
            }
            eprint!("\r{name:<8} {kib:>4} KiB ");
            let speeds = measure(&mut candidates, work, &codec, &mut stripes, arguments);
            let mut cells = vec![(*name).to_owned(), kib.to_string()];
            cells.extend(cells_of(&candidates, &speeds, isal.is_some()));
            table.row(cells);
        }
    }
    eprint!("\r{:20}\r", "");
    Ok(table)
}

/// GB/s of all candidates in all rounds. Every other round goes the other way round, so that nobody
/// always comes first.
fn measure(
    candidates: &mut [Candidate<'_>],
    work: Work,
    codec: &Codec,
    stripes: &mut [Stripe],
    arguments: &Arguments,
) -> Vec<Vec<f64>> {
    let wanted = Duration::from_millis(arguments.milliseconds);
    let passes: Vec<u32> = candidates
        .iter_mut()
        .map(|candidate| candidate.passes_in(wanted, work, codec, stripes))
        .collect();
    let mut speeds = vec![Vec::new(); candidates.len()];
    let mut order: Vec<usize> = (0..candidates.len()).collect();
    for _ in 0..arguments.rounds {
        for &index in &order {
            // What the one before left in the caches is not this one's.
            candidates[index].time(1, work, codec, stripes);
            let time = candidates[index].time(passes[index], work, codec, stripes);
            let data: usize = stripes.iter().map(|stripe| stripe.data_bytes(codec)).sum();
            let bytes = data as f64 * f64::from(passes[index]);
            speeds[index].push(bytes / time.as_secs_f64() / 1e9);
        }
        order.reverse();
    }
    speeds
}

fn cells_of(candidates: &[Candidate<'_>], speeds: &[Vec<f64>], has_isal: bool) -> Vec<String> {
    let of = |wanted: &str| {
        candidates
            .iter()
            .position(|candidate| candidate.name == wanted)
    };
    let show = |index: Option<usize>, none: &str| match index {
        Some(index) => format!("{:.1}", median(speeds[index].iter().copied())),
        None => none.to_owned(),
    };
    let mut cells: Vec<String> = Level::available()
        .map(|level| show(of(&level.to_string()), "-"))
        .collect();
    cells.push(show(
        of(candidate::ISAL),
        if has_isal { "-" } else { "not installed" },
    ));
    cells.push(show(of(candidate::PEER), "-"));
    let best = of(&Level::best().to_string());
    match (best, of(candidate::ISAL)) {
        (Some(ours), Some(isal)) => {
            let pairs = speeds[ours].iter().zip(&speeds[isal]);
            let mut ratios: Vec<f64> = pairs.map(|(ours, isal)| ours / isal).collect();
            ratios.sort_by(f64::total_cmp);
            let quarter = ratios.len() / 4;
            let (low, high) = (ratios[quarter], ratios[ratios.len() - 1 - quarter]);
            cells.push(format!("{:.2}", median(ratios)));
            cells.push(format!("{low:.2}..{high:.2}"));
        }
        _ => cells.extend(["-".to_owned(), "-".to_owned()]),
    }
    cells
}
