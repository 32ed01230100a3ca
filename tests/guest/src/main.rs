//! The command line of the lab: run the guest tests, or one script in a guest.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, Subcommand};
use corebay_guest::guest::Guest;
use corebay_guest::image::Image;
use corebay_guest::machine;

/// Real Linux hosts in small virtual machines, against corebay.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Do,
}

#[derive(Subcommand)]
enum Do {
    /// Make the guest image, or say where it is.
    Image,
    /// Boot a guest, run a bash script in it and print what it says.
    Exec {
        /// The script; it finds the files given with --share in /share.
        script: String,
        /// A file to copy into the guest's /share.
        #[arg(long)]
        share: Vec<PathBuf>,
        /// How long the script may take, in seconds.
        #[arg(long, default_value_t = 600)]
        limit_s: u64,
    },
}

fn main() -> Result<()> {
    match Cli::parse().command {
        Do::Image => println!("{:#?}", Image::prepare(&Image::cache())?),
        Do::Exec { script, share, limit_s } => {
            let image = Image::prepare(&Image::cache())?;
            let guest = Guest::boot(&image, machine::loopback())?;
            for file in share {
                std::fs::copy(&file, guest.share().join(file.file_name().unwrap_or_default()))?;
            }
            let output = guest.attempt(&script, Duration::from_secs(limit_s))?;
            print!("{}", output.said());
            std::process::exit(output.status);
        }
    }
    Ok(())
}
