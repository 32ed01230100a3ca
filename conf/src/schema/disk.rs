//! `[[disk]]`.

use std::path::PathBuf;

use uuid::Uuid;

use super::scalars;
use crate::appliance::{BlockSize, DriveName};
use crate::diagnostic::{Draft, Span};
use crate::limits;
use crate::reader::{At, Field, Refusal, Section, listed};
use crate::units::Size;

const KINDS: [&str; 5] = ["file", "ram", "null", "device", "nvme"];
const NAMES: [&str; 4] = ["address", "serial", "eui64", "nguid"];
const BLOCK_SIZE: &str = "512 or 4096";

/// `[[disk]]` by itself.
pub(crate) struct RawDisk {
    pub(crate) name: Field<String>,
    /// `None`: not said, or wrong; the reason was pushed.
    pub(crate) kind: Option<RawKind>,
    pub(crate) block_size: Field<BlockSize>,
    pub(crate) uuid: Field<Uuid>,
    /// Of the whole disk.
    pub(crate) span: Span,
}

/// What a disk is made of, by itself.
pub(crate) enum RawKind {
    File {
        path: Field<PathBuf>,
        size: Field<Size>,
        create: At<bool>,
        span: Span,
    },
    Ram {
        size: Field<Size>,
    },
    Null {
        size: Field<Size>,
    },
    Device {
        path: Field<PathBuf>,
    },
    Nvme {
        drive: Field<DriveName>,
        nsid: Field<u32>,
    },
}

/// Reads one `[[disk]]`.
pub(crate) fn read(mut section: Section<'_, '_>) -> RawDisk {
    let name = section.parsed("name", "a name", scalars::name);
    if name.is_absent() {
        section.missing("name", "name = \"disk-1\"");
    }
    let raw = RawDisk {
        name,
        kind: kind(&mut section),
        block_size: block_size(&mut section),
        uuid: section.parsed("uuid", "a UUID", scalars::uuid),
        span: section.span,
    };
    section.finish();
    raw
}

/// The one kind that is there; none, or a second, is pushed.
fn kind(section: &mut Section<'_, '_>) -> Option<RawKind> {
    let keys: Vec<(&str, Span)> = KINDS
        .into_iter()
        .filter_map(|kind| Some((kind, section.key_span(kind)?)))
        .collect();
    let kinds = [
        file(section),
        ram(section),
        null(section),
        device(section),
        nvme(section),
    ];
    let mut kinds = kinds.into_iter().flatten();
    match keys.as_slice() {
        [] => {
            let draft = Draft::error("[[disk]] does not say what it is made of")
                .at(section.span, format!("expected one of {}", listed(KINDS)))
                .help("add one of them, as in `file = { path = \"disk-1.img\", size = \"8GiB\", create = true }`")
                .by_absence();
            section.sink.push(draft);
            None
        }
        [_] => kinds.next(),
        [first, rest @ ..] => {
            for (kind, span) in rest {
                let draft =
                    Draft::error(format!("a disk cannot be both `{}` and `{kind}`", first.0))
                        .at(*span, "expected one kind")
                        .and_at(first.1, "the first kind")
                        .help("make two disks of them");
                section.sink.push(draft);
            }
            None
        }
    }
}

fn file(section: &mut Section<'_, '_>) -> Option<RawKind> {
    let example = "`file = { path = \"disk-1.img\", size = \"8GiB\", create = true }`";
    let mut section = section.table("file", "`file`", example)?;
    let path = section.parsed("path", "the path of a file", scalars::path);
    if path.is_absent() {
        section.missing("path", "path = \"disk-1.img\"");
    }
    let size = disk_size(&mut section);
    let create = section.boolean("create").or_at(false);
    let span = section.span;
    section.finish();
    Some(RawKind::File {
        path,
        size,
        create,
        span,
    })
}

fn ram(section: &mut Section<'_, '_>) -> Option<RawKind> {
    let section = section.table("ram", "`ram`", "`ram = { size = \"1GiB\" }`")?;
    Some(RawKind::Ram {
        size: only_size(section),
    })
}

fn null(section: &mut Section<'_, '_>) -> Option<RawKind> {
    let section = section.table("null", "`null`", "`null = { size = \"1TiB\" }`")?;
    Some(RawKind::Null {
        size: only_size(section),
    })
}

fn only_size(mut section: Section<'_, '_>) -> Field<Size> {
    let size = disk_size(&mut section);
    if size.is_absent() {
        section.missing("size", "size = \"1GiB\"");
    }
    section.finish();
    size
}

fn disk_size(section: &mut Section<'_, '_>) -> Field<Size> {
    section.size("size", Size::from_bytes(512)..=limits::DISK_SIZE_MAX)
}

fn device(section: &mut Section<'_, '_>) -> Option<RawKind> {
    let mut section = section.table(
        "device",
        "`device`",
        "`device = { path = \"/dev/nvme1n1\" }`",
    )?;
    let expected = "the absolute path of a block device";
    let path = section.parsed("path", expected, |text| {
        let path = scalars::path(text)?;
        if path.is_absolute() {
            return Ok(path);
        }
        let message = "the path of a device begins with `/`";
        Err(Refusal::new(message, format!("write \"/dev/{text}\"")))
    });
    if path.is_absent() {
        section.missing("path", "path = \"/dev/nvme1n1\"");
    }
    section.finish();
    Some(RawKind::Device { path })
}

fn nvme(section: &mut Section<'_, '_>) -> Option<RawKind> {
    let example = "`nvme = { address = \"0000:01:00.0\" }`";
    let mut section = section.table("nvme", "`nvme`", example)?;
    let keys: Vec<(&str, Span)> = NAMES
        .into_iter()
        .filter_map(|name| Some((name, section.key_span(name)?)))
        .collect();
    let address = section.parsed("address", "a PCI address", scalars::pci_address);
    let serial = section.parsed("serial", "a serial number", scalars::serial);
    let eui64 = section.parsed("eui64", "an EUI-64", scalars::eui64);
    let nguid = section.parsed("nguid", "an NGUID", scalars::nguid);
    let drive = match keys.as_slice() {
        [("address", _)] => address.map(DriveName::Address),
        [("serial", _)] => serial.map(DriveName::Serial),
        [("eui64", _)] => eui64.map(DriveName::Eui64),
        [_] => nguid.map(DriveName::Nguid),
        [] => {
            section.missing("address", "address = \"0000:01:00.0\"");
            Field::Absent
        }
        [first, second, ..] => {
            let message = format!(
                "a drive is named once, not by `{}` and `{}`",
                first.0, second.0
            );
            let draft = Draft::error(message)
                .at(second.1, "expected one name")
                .and_at(first.1, "the first name");
            section.sink.push(draft.help(
                "an address names a slot, a serial number a drive, an EUI-64 or NGUID a namespace",
            ));
            Field::Wrong
        }
    };
    let nsid = section.integer("nsid", 1..=u64::from(u32::MAX - 1));
    section.finish();
    Some(RawKind::Nvme {
        drive,
        nsid: nsid.map(|nsid| u32::try_from(nsid).unwrap_or(u32::MAX)),
    })
}

fn block_size(section: &mut Section<'_, '_>) -> Field<BlockSize> {
    let range = Size::from_bytes(0)..=Size::from_bytes(u64::MAX);
    let size = match section.size_expecting("block_size", range, BLOCK_SIZE) {
        Field::Absent => return Field::Absent,
        Field::Wrong => return Field::Wrong,
        Field::Given(size) => size,
    };
    match BlockSize::from_bytes(size.value.bytes()) {
        Some(block_size) => Field::Given(At {
            value: block_size,
            span: size.span,
        }),
        None => {
            let message = format!("a block cannot be {} bytes long", size.value.bytes());
            let help = "4096 suits most drives and hosts; 512 is for hosts that know no other";
            section.refuse(size.span, BLOCK_SIZE, Refusal::new(message, help))
        }
    }
}
