//! Filesystems and block devices made for one test, where root can make them.
//!
//! Invariant: what was made is unmade when it is dropped, also when the test fails.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// A filesystem mounted on a folder of its own.
pub struct ScratchMount {
    folder: tempfile::TempDir,
}

impl ScratchMount {
    /// Mounts `source` as a filesystem of this type.
    ///
    /// # Errors
    /// Says why that cannot be done here.
    pub fn new(kind: &str, options: &str, source: &Path) -> Result<Self, String> {
        needs_root()?;
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        run(Command::new("mount")
            .args(["-t", kind, "-o", options])
            .arg(source)
            .arg(folder.path()))?;
        Ok(Self { folder })
    }

    /// A filesystem in memory with room for this many bytes.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn tmpfs(bytes: u64) -> Result<Self, String> {
        Self::new("tmpfs", &format!("size={bytes}"), Path::new("tmpfs"))
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for ScratchMount {
    fn drop(&mut self) {
        if let Err(error) = run(Command::new("umount").arg("-l").arg(self.folder.path())) {
            eprintln!("{error}");
        }
    }
}

/// A block device over a file.
pub struct LoopDevice {
    path: PathBuf,
}

impl LoopDevice {
    /// Makes one over `file`, with sectors of this size.
    ///
    /// # Errors
    /// Says why that cannot be done here.
    pub fn over(file: &Path, sector_bytes: usize) -> Result<Self, String> {
        needs_root()?;
        let shown = run(Command::new("losetup")
            .args(["--find", "--show", "--sector-size"])
            .arg(sector_bytes.to_string())
            .arg(file))?;
        Ok(Self {
            path: shown.trim().into(),
        })
    }

    /// The device.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        if let Err(error) = run(Command::new("losetup").arg("-d").arg(&self.path)) {
            eprintln!("{error}");
        }
    }
}

/// Runs a command; what it printed.
///
/// # Errors
/// Where it cannot be run, or fails.
pub fn run(command: &mut Command) -> Result<String, String> {
    let output = command
        .output()
        .map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{command:?}: {}", said.trim()))
}

fn needs_root() -> Result<(), String> {
    if rustix::process::geteuid().is_root() {
        Ok(())
    } else {
        Err("only root can make filesystems and block devices".to_owned())
    }
}

/// The value, or a message and the end of the test: what the machine cannot do is skipped.
#[macro_export]
macro_rules! or_skip {
    ($attempt:expr) => {
        match $attempt {
            Ok(made) => made,
            Err(why) => {
                eprintln!("SKIPPED: {why}");
                return;
            }
        }
    };
}
