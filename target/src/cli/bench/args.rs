//! What `corebay bench` is asked.

use clap::ValueEnum;
use corebay_conf::{Size, TimeSpan};
use corebay_nvme::spec::nqn::Nqn;

use super::super::{Format, address::Address, session::HostArgs};

/// What `corebay bench` is asked.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Latency is measured from the submission of a command to its completion; with --rate from the time
that the command was due, so that a stall counts for every command that it delays.

Writing destroys what the namespace holds, so it must be allowed with --overwrite.

With --verify each block that is written says what and where it is and carries a CRC32C. Reads are
compared with the last completed write to their block, and at the end all that was written is read
back. With --rw read, blocks that an earlier `--rw write --verify` left are checked.

Examples:
  corebay bench --rw read --depth 32 --time 10s
  corebay bench --address 192.0.2.7 --rw mixed --read-percent 70 --queues 4 --cores 1,2 --overwrite
  corebay bench --rw write --pattern sequential --block-size 128KiB --depth 16 --overwrite
  corebay bench --rw mixed --verify --header-digest --data-digest --time 60s --overwrite
  corebay bench --rw read --rate 50000 -o json | jq .read.latency_us.p99")]
pub struct Args {
    /// Where the subsystem is; port 4420 where none is given
    #[arg(long, value_name = "ADDRESS[:PORT]", default_value = "127.0.0.1:4420")]
    pub address: Address,
    /// The subsystem [default: the only one that discovery at the address reports]
    #[arg(long, value_name = "NQN")]
    pub nqn: Option<Nqn>,
    /// The namespace
    #[arg(long, value_name = "NSID", default_value_t = 1)]
    pub nsid: u32,
    /// What is done
    #[arg(long, value_enum, default_value_t = Rw::Read)]
    pub rw: Rw,
    /// With --rw mixed: how much of it is reading
    #[arg(long, value_name = "PERCENT", default_value_t = 70, value_parser = clap::value_parser!(u32).range(0..=100))]
    pub read_percent: u32,
    /// In which order blocks are taken
    #[arg(long, value_enum, default_value_t = Pattern::Random)]
    pub pattern: Pattern,
    /// The size of one command's data: whole blocks of the namespace, at most 1MiB
    #[arg(long, value_name = "SIZE", default_value = "4KiB")]
    pub block_size: Size,
    /// The commands in flight on each queue
    #[arg(long, value_name = "COUNT", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub depth: u16,
    /// I/O queues, spread over the cores [default: one for each core]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub queues: Option<u16>,
    /// The CPUs to poll on [default: the last one, as `corebay serve` takes the first]
    #[arg(long, value_name = "CPU", value_delimiter = ',')]
    pub cores: Vec<u32>,
    /// How long is measured
    #[arg(long, value_name = "TIME", default_value = "10s")]
    pub time: TimeSpan,
    /// How long it runs before it is measured
    #[arg(long, value_name = "TIME", default_value = "0s")]
    pub ramp: TimeSpan,
    /// End after this many commands, where the time has not ended before
    #[arg(long, value_name = "COUNT")]
    pub io_count: Option<u64>,
    /// Commands a second of all queues together [default: as many as possible]
    #[arg(long, value_name = "IOPS", value_parser = clap::value_parser!(u64).range(1..))]
    pub rate: Option<u64>,
    /// How much of the namespace is used, from its start [default: all]
    #[arg(long, value_name = "SIZE")]
    pub span: Option<Size>,
    /// Check the content of what is read
    #[arg(long)]
    pub verify: bool,
    /// Allow writing over what the namespace holds
    #[arg(long)]
    pub overwrite: bool,
    /// Connect again when a connection is lost, and send what was in flight again
    #[arg(long)]
    pub reconnect: bool,
    /// What random choices follow from
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    pub seed: u64,
    #[command(flatten)]
    pub host: HostArgs,
    /// How results are printed
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Format,
}

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Rw {
    /// Only reads
    Read,
    /// Only writes
    Write,
    /// Reads and writes
    Mixed,
}

/// In which order blocks are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Pattern {
    /// Any block at any time
    Random,
    /// One after the other; each queue has its own part
    Sequential,
}

impl Rw {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Mixed => "mixed",
        }
    }
}

impl Pattern {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::Sequential => "sequential",
        }
    }
}
