//! A disk in one word, as `--disk` of the command line takes it: `ram:1GiB`, `file:PATH,size=8GiB`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::appliance::BlockSize;
use crate::limits::DISK_SIZE_MAX;
use crate::suggest::nearest;
use crate::units::{Size, quoted};

/// A disk as the command line names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskSpec {
    /// What it is.
    pub kind: DiskSpecKind,
    /// The logical block; `None`: 4,096 bytes, or the device's own.
    pub block_size: Option<BlockSize>,
}

/// What a disk of the command line is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskSpecKind {
    /// `file:PATH[,size=SIZE]`: created where it does not exist.
    File {
        /// Relative to the folder that the command runs in.
        path: PathBuf,
        /// `None`: the length of the file, or the default size where it does not exist.
        size: Option<Size>,
    },
    /// `ram:SIZE`.
    Ram {
        /// The size of the disk.
        size: Size,
    },
    /// `null:SIZE`.
    Null {
        /// The size of the disk.
        size: Size,
    },
    /// `/dev/...`.
    Device {
        /// The block device.
        path: PathBuf,
    },
}

impl fmt::Display for DiskSpec {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            DiskSpecKind::File {
                path,
                size: Some(size),
            } => write!(out, "file:{},size={size}", path.display())?,
            DiskSpecKind::File { path, size: None } => write!(out, "file:{}", path.display())?,
            DiskSpecKind::Ram { size } => write!(out, "ram:{size}")?,
            DiskSpecKind::Null { size } => write!(out, "null:{size}")?,
            DiskSpecKind::Device { path } => write!(out, "{}", path.display())?,
        }
        match self.block_size {
            Some(block_size) => write!(out, ",block={block_size}"),
            None => Ok(()),
        }
    }
}

/// Why a text names no disk, and what to write in its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskSpecError {
    message: String,
    help: String,
}

impl DiskSpecError {
    /// What is wrong.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// How to mend it.
    pub fn help(&self) -> &str {
        &self.help
    }

    fn new(message: impl Into<String>, help: impl Into<String>) -> DiskSpecError {
        DiskSpecError {
            message: message.into(),
            help: help.into(),
        }
    }
}

impl fmt::Display for DiskSpecError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}: {}", self.message, self.help)
    }
}

impl std::error::Error for DiskSpecError {}

const FORMS: &str = "a disk is `file:PATH[,size=8GiB]`, `ram:1GiB`, `null:1TiB` or `/dev/NAME`, \
                     each with `[,block=512|4096]`";
const KINDS: [&str; 3] = ["file", "ram", "null"];

/// A PCI address in full, in lower case; its domain may be left out. `None` for what is none.
pub fn pci_address(text: &str) -> Option<String> {
    crate::schema::scalars::pci_address(text).ok()
}

impl FromStr for DiskSpec {
    type Err = DiskSpecError;

    fn from_str(text: &str) -> Result<DiskSpec, DiskSpecError> {
        let (body, options) = Options::strip(text)?;
        let kind = if body.starts_with("/dev/") {
            options.refuse_size("a device has the size that it has")?;
            DiskSpecKind::Device {
                path: PathBuf::from(body),
            }
        } else {
            named_kind(text, body, &options)?
        };
        Ok(DiskSpec {
            kind,
            block_size: options.block_size,
        })
    }
}

fn named_kind(text: &str, body: &str, options: &Options) -> Result<DiskSpecKind, DiskSpecError> {
    let Some((kind, rest)) = body.split_once(':') else {
        let help = match body.contains('/') || body.ends_with(".img") {
            true => format!("did you mean `file:{body}`? {FORMS}"),
            false => FORMS.to_owned(),
        };
        return Err(DiskSpecError::new(
            format!("{} is not a disk", quoted(text)),
            help,
        ));
    };
    match kind {
        "file" if rest.is_empty() => Err(DiskSpecError::new(
            "`file:` names no file",
            "write it as in `file:disk-1.img,size=8GiB`",
        )),
        "file" if rest.contains('\0') => Err(DiskSpecError::new(
            "a path has no NUL character",
            "write it as in `file:disk-1.img`",
        )),
        "file" => Ok(DiskSpecKind::File {
            path: PathBuf::from(rest),
            size: options.size,
        }),
        "ram" => Ok(DiskSpecKind::Ram {
            size: only_size(kind, rest, options)?,
        }),
        "null" => Ok(DiskSpecKind::Null {
            size: only_size(kind, rest, options)?,
        }),
        _ => {
            let message = format!("{} is not a kind of disk", quoted(kind));
            let help = match nearest(kind, KINDS) {
                Some(near) => format!("did you mean `{near}:`? {FORMS}"),
                None => FORMS.to_owned(),
            };
            Err(DiskSpecError::new(message, help))
        }
    }
}

fn only_size(kind: &str, rest: &str, options: &Options) -> Result<Size, DiskSpecError> {
    options.refuse_size(&format!("write it as in `{kind}:1GiB`"))?;
    if rest.is_empty() {
        let message = format!("`{kind}:` says no size");
        return Err(DiskSpecError::new(
            message,
            format!("write it as in `{kind}:1GiB`"),
        ));
    }
    disk_size(rest)
}

fn disk_size(text: &str) -> Result<Size, DiskSpecError> {
    let size: Size = text.parse().map_err(|error: crate::units::UnitError| {
        DiskSpecError::new(error.message(), error.help())
    })?;
    if size.bytes() == 0 {
        return Err(DiskSpecError::new(
            "a disk of no bytes is no disk",
            "give it a size, as in `1GiB`",
        ));
    }
    if size > DISK_SIZE_MAX {
        let message = format!("{} is too large for a disk", quoted(text));
        return Err(DiskSpecError::new(
            message,
            format!("at most {DISK_SIZE_MAX}"),
        ));
    }
    Ok(size)
}

/// What follows the first word: `,size=...` and `,block=...`.
#[derive(Default)]
struct Options {
    size: Option<Size>,
    block_size: Option<BlockSize>,
}

impl Options {
    /// Takes the options off the end, so that a path may itself have commas.
    fn strip(text: &str) -> Result<(&str, Options), DiskSpecError> {
        let mut options = Options::default();
        let mut body = text;
        while let Some((head, last)) = body.rsplit_once(',') {
            let Some((key, value)) = last.split_once('=') else {
                break;
            };
            match key {
                "size" if options.size.is_some() => return Err(twice(key)),
                "size" => options.size = Some(disk_size(value)?),
                "block" if options.block_size.is_some() => return Err(twice(key)),
                "block" => options.block_size = Some(block(value)?),
                _ => {
                    let message = format!("{} is not an option of a disk", quoted(key));
                    let near = nearest(key, ["size", "block"]);
                    let help = near.map_or_else(
                        || "the options are `size=` and `block=`".to_owned(),
                        |near| format!("did you mean `{near}=`?"),
                    );
                    return Err(DiskSpecError::new(message, help));
                }
            }
            body = head;
        }
        Ok((body, options))
    }

    fn refuse_size(&self, help: &str) -> Result<(), DiskSpecError> {
        match self.size {
            Some(_) => Err(DiskSpecError::new("`size=` is for `file:` alone", help)),
            None => Ok(()),
        }
    }
}

fn twice(key: &str) -> DiskSpecError {
    DiskSpecError::new(format!("`{key}=` is given twice"), "give it once")
}

fn block(value: &str) -> Result<BlockSize, DiskSpecError> {
    let size = value.parse::<Size>().ok();
    size.and_then(|size| BlockSize::from_bytes(size.bytes()))
        .ok_or_else(|| {
            let message = format!("{} is not a block size", quoted(value));
            DiskSpecError::new(message, "`block=512` or `block=4096`")
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<DiskSpec, String> {
        text.parse::<DiskSpec>().map_err(|error| error.to_string())
    }

    fn spec(kind: DiskSpecKind) -> Result<DiskSpec, String> {
        Ok(DiskSpec {
            kind,
            block_size: None,
        })
    }

    #[test]
    fn each_form() {
        let file = |path: &str, size| {
            spec(DiskSpecKind::File {
                path: path.into(),
                size,
            })
        };
        assert_eq!(parse("file:a.img"), file("a.img", None));
        assert_eq!(
            parse("file:/x/a,b.img,size=1GiB"),
            file("/x/a,b.img", Some(Size::GIB))
        );
        assert_eq!(
            parse("ram:1GiB"),
            spec(DiskSpecKind::Ram { size: Size::GIB })
        );
        assert_eq!(
            parse("null:1TiB"),
            spec(DiskSpecKind::Null { size: Size::TIB })
        );
        let device = DiskSpecKind::Device {
            path: "/dev/nvme0n1".into(),
        };
        assert_eq!(parse("/dev/nvme0n1"), spec(device.clone()));
        let blocks = DiskSpec {
            kind: device,
            block_size: Some(BlockSize::B512),
        };
        assert_eq!(parse("/dev/nvme0n1,block=512"), Ok(blocks));
        let both = parse("file:a.img,block=4096,size=2MiB").unwrap();
        assert_eq!(both.block_size, Some(BlockSize::B4096));
        for text in [
            "file:/x/a,b.img,size=1GiB,block=512",
            "ram:1GiB",
            "null:1TB",
            "/dev/sda,block=4096",
        ] {
            assert_eq!(text.parse::<DiskSpec>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn each_mistake() {
        let cases = [
            ("", "`` is not a disk"),
            ("disk.img", "did you mean `file:disk.img`?"),
            ("rma:1GiB", "did you mean `ram:`?"),
            ("ram:", "`ram:` says no size"),
            ("ram:8G", "did you mean \"8GiB\"?"),
            ("ram:0", "a disk of no bytes"),
            ("null:2EiB", "too large for a disk"),
            ("ram:1GiB,size=1GiB", "`size=` is for `file:` alone"),
            ("/dev/sda,size=1GiB", "`size=` is for `file:` alone"),
            ("ram:1GiB,block=1024", "`block=512` or `block=4096`"),
            ("ram:1GiB,blok=512", "did you mean `block=`?"),
            ("ram:1GiB,block=512,block=512", "`block=` is given twice"),
            ("file:", "`file:` names no file"),
        ];
        for (text, fragment) in cases {
            let error = parse(text).unwrap_err();
            assert!(error.contains(fragment), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_taken_without_panic(text: String) {
            let _ = parse(&text);
        }
    }
}
