//! The stream that a snapshot, or the difference between two, is sent as.
//!
//! A stream is frames: one that begins it, then data and zeroes in ascending order, then one that ends
//! it. Every frame carries its number, and checksums of itself and of its payload; the last one counts
//! the others. So whatever is cut off, lost, doubled, reordered or changed on the way is noticed, and
//! nothing of a frame is used before all of it was checked.

use std::mem::size_of;

use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U32, U64},
};

use super::{NAME_BYTES_MAX, VOLUME_BLOCKS_MAX, crc32c};
use corebay_core::units::BlockSize;

/// The version that is written, and the newest that is read.
pub const STREAM_VERSION: u32 = 1;

/// The most bytes of a frame's payload.
pub const PAYLOAD_BYTES_MAX: usize = 64 << 10;

const MAGIC: [u8; 4] = *b"CBSF";

/// What every frame begins with.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    magic: [u8; 4],
    /// Of these bytes, with this field 0.
    crc: U32,
    payload_crc: U32,
    payload_len: U32,
    /// Counts the stream's frames from 0.
    number: U32,
    kind: u8,
    reserved: [u8; 3],
    first: U64,
    blocks: U64,
}

/// The bytes of a frame without its payload.
pub const FRAME_HEADER_BYTES: usize = size_of::<Header>();
const _: () = assert!(FRAME_HEADER_BYTES == 40);

/// The payload of the first frame, before the name.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawBegin {
    version: U32,
    block_bytes: U32,
    blocks: U64,
    start: U64,
    from: [u8; 16],
    to: [u8; 16],
    name_len: U32,
    reserved: [u8; 4],
}

const _: () = assert!(size_of::<RawBegin>() == 64);

const BEGIN: u8 = 1;
const DATA: u8 = 2;
const ZEROES: u8 = 3;
const END: u8 = 4;

/// What a stream is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Begin {
    /// The size of blocks.
    pub block_size: BlockSize,
    /// The snapshot's size.
    pub blocks: u64,
    /// Where the stream begins: what lies before was received already.
    pub start: u64,
    /// The UUID of the snapshot that the receiver has; zeroes where it needs none.
    pub from: [u8; 16],
    /// The snapshot's UUID.
    pub to: [u8; 16],
    /// The snapshot's name.
    pub name: String,
}

/// A part of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// What it is about.
    Begin(Begin),
    /// Blocks from here on.
    Data {
        /// The first block.
        first: u64,
        /// Their bytes.
        bytes: Vec<u8>,
    },
    /// Blocks that read as zeroes.
    Zeroes {
        /// The first block.
        first: u64,
        /// How many.
        blocks: u64,
    },
    /// The stream is complete.
    End {
        /// Blocks of data that it had.
        data_blocks: u64,
    },
}

/// Why a stream is not what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamFault {
    /// It begins with something else.
    NotAStream,
    /// It is newer than this program.
    NewerVersion(u32),
    /// A frame was changed, lost or put elsewhere on the way.
    Damaged(Damage),
    /// It ended too early.
    Truncated,
    /// Something follows its end.
    BeyondEnd,
}

/// Where a stream is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The frame's number.
    pub number: u32,
    /// Where it begins, in bytes from the stream's start.
    pub at: u64,
    /// The checksum that it has, and that of its bytes, where they differ.
    pub checksums: Option<[u32; 2]>,
}

impl std::fmt::Display for StreamFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotAStream => write!(f, "this is no stream of a snapshot"),
            Self::NewerVersion(version) => {
                write!(
                    f,
                    "the stream has version {version}, newer than this program"
                )
            }
            Self::Damaged(Damage {
                number,
                at,
                checksums,
            }) => {
                write!(
                    f,
                    "frame {number} of the stream, {at} bytes from its start, is damaged"
                )?;
                match checksums {
                    Some([said, found]) => write!(
                        f,
                        ": its checksum is {said:08x}, and that of its bytes {found:08x}"
                    ),
                    None => write!(f, ": what it says cannot be"),
                }
            }
            Self::Truncated => write!(f, "the stream ended too early"),
            Self::BeyondEnd => write!(f, "something follows the stream's end"),
        }
    }
}

impl std::error::Error for StreamFault {}

/// Writes frames.
#[derive(Debug, Default)]
pub struct FrameWriter {
    number: u32,
}

impl FrameWriter {
    /// Adds a frame's bytes.
    ///
    /// # Panics
    /// Where the payload is larger than a frame may have.
    pub fn write(&mut self, frame: &Frame, out: &mut Vec<u8>) {
        let (kind, first, blocks) = match frame {
            Frame::Begin(begin) => (BEGIN, begin.start, begin.blocks),
            Frame::Data { first, .. } => (DATA, *first, 0),
            Frame::Zeroes { first, blocks } => (ZEROES, *first, *blocks),
            Frame::End { data_blocks } => (END, 0, *data_blocks),
        };
        let begin;
        let payload: &[u8] = match frame {
            Frame::Begin(what) => {
                begin = what.encode();
                &begin
            }
            Frame::Data { bytes, .. } => bytes,
            Frame::Zeroes { .. } | Frame::End { .. } => &[],
        };
        assert!(payload.len() <= PAYLOAD_BYTES_MAX, "too large for a frame");
        let mut header = Header {
            magic: MAGIC,
            crc: 0.into(),
            payload_crc: crc32c(payload).into(),
            payload_len: u32::try_from(payload.len()).expect("bounded").into(),
            number: self.number.into(),
            kind,
            reserved: [0; 3],
            first: first.into(),
            blocks: blocks.into(),
        };
        header.crc = crc32c(header.as_bytes()).into();
        out.extend(header.as_bytes());
        out.extend(payload);
        self.number = self.number.wrapping_add(1);
    }
}

impl Begin {
    fn encode(&self) -> Vec<u8> {
        let raw = RawBegin {
            version: STREAM_VERSION.into(),
            block_bytes: (1u32 << self.block_size.shift()).into(),
            blocks: self.blocks.into(),
            start: self.start.into(),
            from: self.from,
            to: self.to,
            name_len: u32::try_from(self.name.len()).expect("a name").into(),
            reserved: [0; 4],
        };
        let mut bytes = raw.as_bytes().to_vec();
        bytes.extend(self.name.as_bytes());
        bytes
    }

    fn parse(payload: &[u8]) -> Result<Self, StreamFault> {
        // It is the first frame.
        let damaged = StreamFault::Damaged(Damage {
            number: 0,
            at: 0,
            checksums: None,
        });
        // The version comes first, whatever follows in later ones.
        let (version, _) = U32::read_from_prefix(payload).map_err(|_| damaged)?;
        if version.get() != STREAM_VERSION {
            return Err(StreamFault::NewerVersion(version.get()));
        }
        let (raw, name) = RawBegin::read_from_prefix(payload).map_err(|_| damaged)?;
        let sane = name.len() == raw.name_len.get() as usize
            && (1..=NAME_BYTES_MAX).contains(&name.len())
            && (1..=VOLUME_BLOCKS_MAX).contains(&raw.blocks.get())
            && raw.start.get() <= raw.blocks.get();
        let block_size = BlockSize::from_bytes(u64::from(raw.block_bytes.get()));
        let name = String::from_utf8(name.to_vec()).map_err(|_| damaged)?;
        Ok(Self {
            block_size: block_size.filter(|_| sane).ok_or(damaged)?,
            blocks: raw.blocks.get(),
            start: raw.start.get(),
            from: raw.from,
            to: raw.to,
            name,
        })
    }
}

/// Takes a stream apart, however its bytes come in.
#[derive(Debug, Default)]
pub struct FrameReader {
    /// What has come of the next frame; at most a whole one.
    waiting: Vec<u8>,
    number: u32,
    /// Where it begins in the stream.
    at: u64,
    /// What the first frame said, and the first block that may come next.
    begin: Option<(BlockSize, u64)>,
    next: u64,
    data_blocks: u64,
    ended: bool,
}

impl FrameReader {
    /// The next frame, if all its bytes are there; takes what it uses from `bytes`.
    ///
    /// # Errors
    /// Where the stream is not what it should be. Nothing more can be read from it then.
    pub fn next(&mut self, bytes: &mut &[u8]) -> Result<Option<Frame>, StreamFault> {
        if self.ended {
            return match bytes.is_empty() {
                true => Ok(None),
                false => Err(StreamFault::BeyondEnd),
            };
        }
        if !self.take(FRAME_HEADER_BYTES, bytes) {
            return Ok(None);
        }
        let header = self.header()?;
        let len = FRAME_HEADER_BYTES + header.payload_len.get() as usize;
        if !self.take(len, bytes) {
            return Ok(None);
        }
        let whole = std::mem::take(&mut self.waiting);
        let payload = &whole[FRAME_HEADER_BYTES..];
        let checksums = [header.payload_crc.get(), crc32c(payload)];
        if checksums[0] != checksums[1] {
            return Err(self.damaged(Some(checksums)));
        }
        let frame = self.frame(&header, payload)?;
        self.number = self.number.wrapping_add(1);
        self.at += whole.len() as u64;
        Ok(Some(frame))
    }

    /// True where the last frame has come.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Waits for `len` bytes to be together.
    fn take(&mut self, len: usize, bytes: &mut &[u8]) -> bool {
        let missing = len.saturating_sub(self.waiting.len()).min(bytes.len());
        let (now, later) = bytes.split_at(missing);
        self.waiting.extend(now);
        *bytes = later;
        self.waiting.len() >= len
    }

    /// The frame that is read is damaged.
    fn damaged(&self, checksums: Option<[u32; 2]>) -> StreamFault {
        StreamFault::Damaged(Damage {
            number: self.number,
            at: self.at,
            checksums,
        })
    }

    fn header(&self) -> Result<Header, StreamFault> {
        let fault = |checksums| match self.number {
            0 => StreamFault::NotAStream,
            _ => self.damaged(checksums),
        };
        let (header, _) = Header::read_from_prefix(&self.waiting).map_err(|_| fault(None))?;
        let mut unsigned = header;
        unsigned.crc = 0.into();
        let checksums = [header.crc.get(), crc32c(unsigned.as_bytes())];
        if checksums[0] != checksums[1] {
            return Err(fault(Some(checksums)));
        }
        let right = header.magic == MAGIC
            && header.number.get() == self.number
            && header.payload_len.get() as usize <= PAYLOAD_BYTES_MAX;
        right.then_some(header).ok_or_else(|| fault(None))
    }

    fn frame(&mut self, header: &Header, payload: &[u8]) -> Result<Frame, StreamFault> {
        let damaged = self.damaged(None);
        let (first, blocks) = (header.first.get(), header.blocks.get());
        let Some((block_size, _)) = self.begin else {
            if header.kind != BEGIN {
                return Err(damaged);
            }
            let begin = Begin::parse(payload)?;
            self.begin = Some((begin.block_size, begin.blocks));
            self.next = begin.start;
            return Ok(Frame::Begin(begin));
        };
        match header.kind {
            DATA if payload.len().is_multiple_of(block_size.bytes()) => {
                let blocks = block_size.blocks_in(payload.len() as u64);
                self.advance(first, blocks).ok_or(damaged)?;
                self.data_blocks += blocks;
                let bytes = payload.to_vec();
                Ok(Frame::Data { first, bytes })
            }
            ZEROES if payload.is_empty() => {
                self.advance(first, blocks).ok_or(damaged)?;
                Ok(Frame::Zeroes { first, blocks })
            }
            END if blocks == self.data_blocks && payload.is_empty() => {
                self.ended = true;
                let data_blocks = blocks;
                Ok(Frame::End { data_blocks })
            }
            _ => Err(damaged),
        }
    }

    /// Blocks come in ascending order, each once, within the snapshot.
    fn advance(&mut self, first: u64, blocks: u64) -> Option<()> {
        let (_, all) = self.begin?;
        let end = first.checked_add(blocks)?;
        let right = blocks > 0 && first >= self.next && end <= all;
        self.next = end;
        right.then_some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frames() -> Vec<Frame> {
        vec![
            Frame::Begin(Begin {
                block_size: BlockSize::B512,
                blocks: 1000,
                start: 10,
                from: [0; 16],
                to: [2; 16],
                name: "s".to_owned(),
            }),
            Frame::Data {
                first: 10,
                bytes: vec![3; 1024],
            },
            Frame::Zeroes {
                first: 20,
                blocks: 30,
            },
            Frame::Data {
                first: 999,
                bytes: vec![4; 512],
            },
            Frame::End { data_blocks: 3 },
        ]
    }

    fn bytes(frames: &[Frame]) -> Vec<u8> {
        let (mut writer, mut bytes) = (FrameWriter::default(), Vec::new());
        for frame in frames {
            writer.write(frame, &mut bytes);
        }
        bytes
    }

    /// Reads in parts of a size; the frames before the first fault, and the fault.
    fn read(bytes: &[u8], part: usize) -> (Vec<Frame>, Option<StreamFault>) {
        let (mut reader, mut found) = (FrameReader::default(), Vec::new());
        for mut part in bytes.chunks(part) {
            loop {
                match reader.next(&mut part) {
                    Ok(Some(frame)) => found.push(frame),
                    Ok(None) => break,
                    Err(fault) => return (found, Some(fault)),
                }
            }
            assert!(part.is_empty(), "bytes are left");
        }
        let fault = (!reader.has_ended()).then_some(StreamFault::Truncated);
        (found, fault)
    }

    #[test]
    fn a_stream_reads_back_however_it_is_cut() {
        let bytes = bytes(&frames());
        for part in [1, 7, 40, 41, 1000, 1 << 20] {
            assert_eq!(read(&bytes, part), (frames(), None));
        }
    }

    #[test]
    fn every_flipped_bit_and_every_early_end_is_noticed() {
        let whole = bytes(&frames());
        for at in 0..whole.len() {
            let mut wrong = whole.clone();
            wrong[at] ^= 1 << (at % 8);
            let (found, fault) = read(&wrong, 512);
            assert!(fault.is_some(), "byte {at}");
            assert_eq!(found[..], frames()[..found.len()]);
            assert_eq!(read(&whole[..at], 512).1, Some(StreamFault::Truncated));
        }
        let beyond = [&whole[..], &[0]].concat();
        assert_eq!(read(&beyond, 64).1, Some(StreamFault::BeyondEnd));
    }

    #[test]
    fn lost_doubled_and_reordered_frames_are_noticed() {
        let parts: Vec<Vec<u8>> = {
            let mut writer = FrameWriter::default();
            let one = |frame: &Frame| {
                let mut bytes = Vec::new();
                writer.write(frame, &mut bytes);
                bytes
            };
            frames().iter().map(one).collect()
        };
        for order in [
            vec![0, 2, 3, 4],
            vec![0, 1, 1, 2, 3, 4],
            vec![0, 2, 1, 3, 4],
            vec![1, 2, 3, 4],
            vec![0, 1, 2, 4],
        ] {
            let stream: Vec<u8> = order.iter().flat_map(|at| parts[*at].clone()).collect();
            assert!(read(&stream, 99).1.is_some(), "{order:?}");
        }
    }

    #[test]
    fn what_contradicts_itself_is_refused_although_its_checksums_are_right() {
        let with = |change: fn(&mut Vec<Frame>)| {
            let mut frames = frames();
            change(&mut frames);
            read(&bytes(&frames), 4096).1
        };
        assert!(with(|frames| frames[4] = Frame::End { data_blocks: 2 }).is_some());
        assert!(
            with(|frames| frames.insert(
                2,
                Frame::Zeroes {
                    first: 11,
                    blocks: 1
                }
            ))
            .is_some()
        );
        assert!(
            with(|frames| frames[2] = Frame::Zeroes {
                first: 20,
                blocks: 0
            })
            .is_some()
        );
        let beyond = Frame::Zeroes {
            first: u64::MAX,
            blocks: 2,
        };
        let mut frames = frames();
        frames[2] = beyond;
        let damage = Damage {
            number: 2,
            at: bytes(&frames[..2]).len() as u64,
            checksums: None,
        };
        let fault = read(&bytes(&frames), 9).1;
        assert_eq!(fault, Some(StreamFault::Damaged(damage)));
    }

    #[test]
    fn what_is_damaged_is_told_with_its_place_and_checksums() {
        let frames = frames();
        let (before, mut stream) = (bytes(&frames[..1]), bytes(&frames));
        assert!(matches!(frames[1], Frame::Data { .. }));
        let at = before.len();
        let said = u32::from_le_bytes(stream[at + 8..at + 12].try_into().unwrap());
        stream[at + FRAME_HEADER_BYTES] ^= 1;
        let Some(StreamFault::Damaged(damage)) = read(&stream, 4096).1 else {
            panic!("it is damaged")
        };
        assert_eq!((damage.number, damage.at), (1, at as u64));
        let [expected, found] = damage.checksums.unwrap();
        assert_eq!(expected, said);
        assert_ne!(expected, found);
        // Of a header, too.
        stream[at + 16] ^= 1;
        let fault = read(&stream, 4096).1.unwrap().to_string();
        assert!(fault.contains("frame 1 of the stream"), "{fault}");
        assert!(fault.contains("its checksum is"), "{fault}");
    }

    #[test]
    fn a_newer_version_is_told() {
        let mut stream = bytes(&frames());
        stream[FRAME_HEADER_BYTES] = 9;
        let payload = FRAME_HEADER_BYTES..FRAME_HEADER_BYTES + 65;
        let crc = crc32c(&stream[payload]).to_le_bytes();
        stream[8..12].copy_from_slice(&crc);
        stream[4..8].fill(0);
        let crc = crc32c(&stream[..FRAME_HEADER_BYTES]).to_le_bytes();
        stream[4..8].copy_from_slice(&crc);
        assert_eq!(read(&stream, 9).1, Some(StreamFault::NewerVersion(9)));
    }

    /// Makes a frame's checksums right again.
    fn sign(stream: &mut [u8]) {
        let mut at = 0;
        while let Some(header) = stream.get(at..at + FRAME_HEADER_BYTES) {
            let len = u32::from_le_bytes(header[12..16].try_into().unwrap()) as usize;
            let payload = at + FRAME_HEADER_BYTES;
            let Some(bytes) = stream.get(payload..payload + len) else {
                return;
            };
            let crc = crc32c(bytes).to_le_bytes();
            stream[at + 8..at + 12].copy_from_slice(&crc);
            stream[at + 4..at + 8].fill(0);
            let crc = crc32c(&stream[at..at + FRAME_HEADER_BYTES]).to_le_bytes();
            stream[at + 4..at + 8].copy_from_slice(&crc);
            at = payload + len;
        }
    }

    proptest! {
        #[test]
        fn any_bytes_end_in_frames_or_a_fault(bytes in proptest::collection::vec(any::<u8>(), 0..300),
            part in 1usize..64) {
            let (found, fault) = read(&bytes, part);
            prop_assert!(found.is_empty() && fault.is_some());
        }

        #[test]
        fn changed_streams_with_right_checksums_never_panic_and_stay_within(
            changes in proptest::collection::vec((any::<u16>(), any::<u8>()), 1..6)) {
            let mut stream = bytes(&frames());
            for (at, value) in changes {
                let at = usize::from(at) % stream.len();
                stream[at] = value;
            }
            sign(&mut stream);
            let (found, _) = read(&stream, 64);
            let mut next = 0;
            let mut all = 0;
            for frame in found {
                match frame {
                    Frame::Begin(begin) => (next, all) = (begin.start, begin.blocks),
                    Frame::Data { first, bytes } => {
                        prop_assert!(first >= next && !bytes.is_empty());
                        next = first + 1;
                        prop_assert!(next <= all);
                    }
                    Frame::Zeroes { first, blocks } => {
                        prop_assert!(first >= next && blocks > 0);
                        next = first + blocks;
                        prop_assert!(next <= all);
                    }
                    Frame::End { .. } => {}
                }
            }
        }
    }
}
