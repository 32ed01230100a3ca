//! `corebay drives bench`: how fast a drive is under corebay's own driver, with nothing above it.

use std::{cell::Cell, rc::Rc, time::Duration};

use corebay_conf::{Size, TimeSpan};
use corebay_core::{
    disk::{Disk, Durability},
    rng::Rng,
    units::{Lba, Time},
};
use corebay_nvme::pcie::{DriverOptions, NvmeDisk, Queue};
use corebay_nvme::vfio::VfioRegisters;
use hdrhistogram::Histogram;
use serde_json::{Value, json};

use super::{
    super::Failure,
    alone::{self, Alone},
};
use crate::appliance::check_lent;

/// The longest latency that is told from longer ones, in nanoseconds.
const LATENCY_NS_MAX: u64 = 120_000_000_000;

/// What `corebay drives bench` is asked.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Its PCI address; it is bound to vfio-pci, and nobody uses it
    #[arg(value_name = "ADDRESS", value_parser = super::address)]
    address: String,
    /// The namespace
    #[arg(long, default_value_t = 1)]
    nsid: u32,
    /// Write instead of read: what is on the drive is lost
    #[arg(long)]
    destroy: bool,
    /// The bytes of each I/O
    #[arg(long, default_value = "4KiB")]
    block: Size,
    /// I/Os at a time
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=1000))]
    depth: u16,
    /// How long
    #[arg(long, default_value = "5s")]
    time: TimeSpan,
}

/// Measures; gives the results.
pub fn run(args: &Args) -> Result<Value, Failure> {
    let bytes = usize::try_from(args.block.bytes()).unwrap_or(usize::MAX);
    if bytes == 0 || bytes > 1 << 20 {
        return Err(Failure::new(
            "an I/O has 512 bytes to 1MiB",
            "change --block",
        ));
    }
    check_lent(&args.address)?;
    let options = DriverOptions {
        entries: 1024,
        ..DriverOptions::default()
    };
    let memory = usize::from(args.depth) * bytes.next_power_of_two().max(4096);
    let asked = args.clone();
    alone::with(&args.address, options, memory, move |alone| {
        measure(alone, asked, bytes)
    })
}

/// What is counted.
struct Tally {
    latency_ns: Histogram<u64>,
    error: Option<String>,
}

async fn measure(alone: Rc<Alone>, args: Args, bytes: usize) -> Result<Value, String> {
    let queue = Queue::open(
        alone.controller.drive(),
        &alone.reactor,
        alone.windows.clone(),
    );
    let queue = queue.ok_or("it has no I/O queue")?;
    let disk = queue.disk(args.nsid);
    let disk = Rc::new(disk.ok_or_else(|| format!("it has no namespace {}", args.nsid))?);
    let info = disk.info();
    let blocks = info.block_size.blocks_in(bytes as u64);
    if !bytes.is_multiple_of(info.block_size.bytes()) || blocks > info.blocks {
        return Err(format!("its blocks are {} bytes", info.block_size));
    }
    let histogram =
        Histogram::new_with_max(LATENCY_NS_MAX, 3).map_err(|error| error.to_string())?;
    let tally = Rc::new(std::cell::RefCell::new(Tally {
        latency_ns: histogram,
        error: None,
    }));
    let (begin, running) = (alone.clock.now(), Rc::new(Cell::new(0)));
    let end = begin.plus(args.time.duration());
    for worker in 0..args.depth {
        let load = Load {
            alone: alone.clone(),
            disk: disk.clone(),
            blocks,
            write: args.destroy,
            places: info.blocks / blocks,
            end,
            rng: Rng::from_seed(u64::from(worker) + 1),
        };
        let buffer = alone.pool.try_allocate(bytes);
        let buffer = buffer.ok_or("there is too little memory for buffers")?;
        let (tally, counted) = (tally.clone(), running.clone());
        running.set(running.get() + 1);
        let task = async move {
            load.run(&[buffer], &tally).await;
            counted.set(counted.get() - 1);
        };
        if alone.reactor.spawn(Box::pin(task)).is_err() {
            return Err("there are too few tasks".into());
        }
    }
    while running.get() > 0 {
        alone.reactor.sleep(Duration::from_millis(1)).await;
    }
    let seconds = alone.clock.now().since(begin).as_secs_f64();
    let tally = tally.borrow();
    if let Some(error) = &tally.error {
        return Err(error.clone());
    }
    let latency = &tally.latency_ns;
    let micros = |nanos: f64| nanos / 1000.0;
    Ok(json!({
        "address": args.address,
        "nsid": args.nsid,
        "direction": if args.destroy { "write" } else { "read" },
        "block_bytes": bytes,
        "depth": args.depth,
        "seconds": seconds,
        "ios": latency.len(),
        "iops": latency.len() as f64 / seconds,
        "latency_us_mean": micros(latency.mean()),
        "latency_us_p99": micros(latency.value_at_quantile(0.99) as f64),
        "latency_us_max": micros(latency.max() as f64),
    }))
}

struct Load {
    alone: Rc<Alone>,
    disk: Rc<NvmeDisk<VfioRegisters>>,
    blocks: u64,
    write: bool,
    places: u64,
    end: Time,
    rng: Rng,
}

impl Load {
    async fn run(
        mut self,
        buffer: &[corebay_core::buffer::Buffer],
        tally: &std::cell::RefCell<Tally>,
    ) {
        loop {
            let begin = self.alone.clock.now();
            if begin >= self.end {
                return;
            }
            let at = Lba(self.rng.below(self.places) * self.blocks);
            let done = match self.write {
                true => self.disk.write(at, buffer, Durability::Cached).await,
                false => self.disk.read(at, buffer).await,
            };
            let took = self.alone.clock.now().since(begin).as_nanos();
            let mut tally = tally.borrow_mut();
            match done {
                Ok(()) => {
                    let nanos = u64::try_from(took).unwrap_or(u64::MAX);
                    tally
                        .latency_ns
                        .saturating_record(nanos.min(LATENCY_NS_MAX));
                }
                Err(error) => {
                    tally.error.get_or_insert(error.to_string());
                    return;
                }
            }
        }
    }
}

/// The results, for people.
pub fn as_text(result: &Value) -> String {
    let number = |key: &str| result[key].as_f64().unwrap_or(0.0);
    format!(
        "{}: {} of {} bytes at depth {}: {:.0} IOPS, {:.1} MB/s\n\
         latency: mean {:.1} us, 99% {:.1} us, greatest {:.1} us\n",
        result["address"].as_str().unwrap_or_default(),
        result["direction"].as_str().unwrap_or_default(),
        result["block_bytes"],
        result["depth"],
        number("iops"),
        number("iops") * number("block_bytes") / 1e6,
        number("latency_us_mean"),
        number("latency_us_p99"),
        number("latency_us_max"),
    )
}
