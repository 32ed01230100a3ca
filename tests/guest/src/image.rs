//! Owns the guest image on the machine: kernel, initramfs and guest root, built once per recipe.
//!
//! Layout of the cache folder: `packages/` (apt's downloads, kept between recipes), `KEY/` (an image,
//! complete as soon as it exists under that name), `lock` (held while one process builds).

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::apt::{Apt, PackagesUnavailable};
use crate::{initramfs, process, recipe};

/// A guest image, ready to boot.
#[derive(Clone, Debug)]
pub struct Image {
    /// The kernel.
    pub kernel: PathBuf,
    /// The initramfs that mounts the root.
    pub initramfs: PathBuf,
    /// The guest root, shared with guests read-only.
    pub root: PathBuf,
}

impl Image {
    /// The folder that holds images and packages: `.build/guest` of the workspace.
    pub fn cache() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.build/guest")
    }

    /// The image of the current recipe in `cache`; made first if it is not there.
    pub fn prepare(cache: &Path) -> Result<Image> {
        fs::create_dir_all(cache)?;
        let cache = cache.canonicalize()?;
        let folder = cache.join(recipe::key());
        let lock = File::create(cache.join("lock"))?;
        lock.lock().context("lock the image cache")?;
        if !folder.exists() {
            let start = Instant::now();
            let draft = cache.join("draft");
            let _ = fs::remove_dir_all(&draft);
            build(&cache.join("packages"), &draft)?;
            fs::rename(&draft, &folder)?;
            say(&format!(
                "guest image ready after {} s",
                start.elapsed().as_secs()
            ));
        }
        Ok(Image {
            kernel: folder.join("vmlinuz"),
            initramfs: folder.join("initramfs"),
            root: folder.join("root"),
        })
    }
}

fn say(text: &str) {
    eprintln!("    {text}");
}

fn build(packages: &Path, draft: &Path) -> Result<()> {
    say("guest image: fetching the packages (about 190 MB, once)");
    fs::create_dir_all(packages)?;
    let archives = Apt::new(packages, recipe::SUITE)
        .and_then(|apt| apt.download(recipe::PACKAGES))
        .context(PackagesUnavailable)?;
    say(&format!(
        "guest image: unpacking {} packages",
        archives.len()
    ));
    let root = draft.join("root");
    let kernel = draft.join("kernel");
    fs::create_dir_all(&root)?;
    fs::create_dir_all(&kernel)?;
    let (kernels, others): (Vec<_>, Vec<_>) = archives.iter().partition(|archive| {
        let name = archive.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("linux-image-") && !name.starts_with("linux-image-amd64")
    });
    for archive in others {
        unpack(archive, &root)?;
    }
    ensure!(
        kernels.len() == 1,
        "expected one kernel package, got {}",
        kernels.len()
    );
    unpack(kernels[0], &kernel)?;
    let modules = take_modules(&kernel, &root)?;
    let boot = the_only(&kernel.join("boot"), "vmlinuz-")?;
    fs::rename(boot, draft.join("vmlinuz"))?;
    fs::remove_dir_all(&kernel)?;
    let init = root.join("lab/init");
    fs::create_dir_all(root.join("lab"))?;
    for mount_point in ["proc", "sys", "dev", "run", "tmp", "share", "mnt"] {
        fs::create_dir_all(root.join(mount_point))?;
    }
    fs::write(&init, recipe::INIT)?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;
    let shell = root.join("usr/bin/sh");
    ensure!(shell.exists(), "the guest root has no shell");
    initramfs::write(&draft.join("initramfs"), &root, &modules)
}

/// Unpacks one package without running its scripts and without root rights.
fn unpack(archive: &Path, into: &Path) -> Result<()> {
    let mut reader = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(archive)
        .stdout(Stdio::piped())
        .spawn()
        .context("start dpkg-deb")?;
    let tar = Command::new("tar")
        .args([
            "--extract",
            "--keep-directory-symlink",
            "--no-same-owner",
            "--directory",
        ])
        .arg(into)
        .stdin(reader.stdout.take().context("no output of dpkg-deb")?)
        .output()?;
    let read = reader.wait()?;
    let said = String::from_utf8_lossy(&tar.stderr);
    ensure!(
        read.success() && tar.status.success(),
        "unpack {}: {said}",
        archive.display()
    );
    Ok(())
}

/// Moves the wanted modules into the root, unpacked and indexed; gives their folder there.
fn take_modules(kernel: &Path, root: &Path) -> Result<PathBuf> {
    let from = the_only(&kernel.join("usr/lib/modules"), "")?;
    let release = from.file_name().context("a kernel release")?.to_owned();
    let to = root.join("usr/lib/modules").join(&release);
    for part in recipe::MODULES {
        let (source, place) = (from.join("kernel").join(part), to.join("kernel").join(part));
        ensure!(
            source.exists(),
            "the kernel package has no modules at {part}"
        );
        fs::create_dir_all(place.parent().context("a part has a parent")?)?;
        fs::rename(source, place)?;
    }
    for list in [
        "modules.builtin",
        "modules.builtin.modinfo",
        "modules.order",
    ] {
        fs::rename(from.join(list), to.join(list))?;
    }
    let mut compressed = Vec::new();
    collect(&to.join("kernel"), "xz", &mut compressed)?;
    process::run(
        Command::new("xz")
            .args(["--decompress", "--threads=0"])
            .args(&compressed),
    )?;
    let depmod = process::find("depmod").context("depmod is not installed")?;
    process::run(
        Command::new(depmod)
            .arg("-b")
            .arg(root.join("usr"))
            .arg(&release),
    )?;
    Ok(to)
}

fn collect(folder: &Path, extension: &str, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, extension, found)?;
        } else if path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
    Ok(())
}

fn the_only(folder: &Path, prefix: &str) -> Result<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            found.push(entry.path());
        }
    }
    ensure!(
        found.len() == 1,
        "expected one {prefix}* in {}",
        folder.display()
    );
    Ok(found.remove(0))
}
