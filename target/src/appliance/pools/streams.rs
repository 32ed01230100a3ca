//! What takes long: streams of snapshots, raw images, inflating; and how far each of them is.
//!
//! Invariants:
//! - Files and pipes are read and written by threads that the main thread starts, never by a core. Between
//!   them and the home core goes a bounded number of bounded pieces.
//! - None of it holds its pool's turn, but at its end, to show what was made: other orders go on meanwhile.

use std::{
    cell::Cell,
    fs::File,
    io::{self, Read, Write},
    os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt},
    path::Path,
    rc::Rc,
    sync::mpsc::{Receiver, Sender, SyncSender, TryRecvError, TrySendError, channel, sync_channel},
    time::Duration,
};

use corebay_conf::Size;
use corebay_core::{
    disk::file::{FileError, Locked},
    reactor::Reactor,
    units::Time,
};
use corebay_lvol::{
    Piece, ReceiveError, ReceiveOptions, SparseFile, VolumeId, error::PoolError,
    format::page::VolumeRecord,
};
use rustix::fs::{OFlags, fcntl_setfl};
use serde_json::{Value, json};

use super::{
    describe::describe_volume,
    home::{Home, OpenPool},
    orders::{VolumeExport, VolumeImport, VolumeReceive, VolumeSend, What},
    refusals::{already, refusal, refusal_in},
    volumes::{Outcome, blocks_of, check_name, identity},
};
use crate::{
    appliance::{control::RpcError, run::spawn},
    cli::Failure,
};

/// What the name of a volume ends in until all of its image is there.
pub const IMPORTING: &str = ".importing";

/// The work of writing an image.
const IMAGE: &str = "export";

/// Pieces that may be on their way.
const PIECES_MAX: usize = 16;

/// How large the pieces of a stream are, about.
const PIECE_BYTES: usize = 256 << 10;

/// How often it is looked whether the other side has come further.
const PAUSE: Duration = Duration::from_millis(1);

/// Where the other side has not moved for so long, the work ends; but for a file that is being made
/// durable, which moves no piece and may take as long as it needs.
const IDLE_MAX: Duration = Duration::from_secs(15 * 60);

/// A file's or pipe's side of a long order.
pub enum Stream {
    /// Takes a stream.
    Sink(SyncSender<Vec<u8>>, Receiver<Step>),
    /// Gives a stream.
    Source(Receiver<io::Result<Vec<u8>>>),
    /// Takes an image: its length, then its pieces.
    ImageSink(SyncSender<ImagePart>, Receiver<Step>),
    /// Gives an image.
    ImageSource(Receiver<io::Result<Piece>>, ImageAbout),
}

/// What is known of an image before it is read.
pub struct ImageAbout {
    /// Its bytes.
    length: u64,
    /// What it takes where it lies, if that is known.
    taken_bytes: u64,
    /// Which one it is.
    which: String,
}

/// How far the other side is that takes pieces.
pub enum Step {
    /// All of them are written; it is being made durable.
    Written,
    /// It is at its end.
    Ended(io::Result<()>),
}

/// What goes to an image's file.
pub enum ImagePart {
    /// Its length; first.
    Length(u64),
    /// Some of its bytes.
    Piece(Piece),
    /// That was all. Without it what came is no image.
    End,
}

/// What the name of an image's file ends with until all of it is there.
const PART: &str = ".corebay-part";

/// Opens what a long order reads or writes, and starts the thread that does. On the main thread.
///
/// # Errors
/// Where it cannot be opened.
pub fn open(what: &What) -> Result<Option<Stream>, RpcError> {
    let opened = match what {
        What::VolumeSend(send) => to_write(&send.path).and_then(sink),
        What::VolumeReceive(receive) => to_read(&receive.path).and_then(source),
        What::VolumeExport(export) => to_write(&export.path)
            .and_then(|to| to.for_image(&export.path))
            .and_then(image_sink),
        What::VolumeImport(import) => {
            to_read(&import.path).and_then(|file| image_source(file, &import.path))
        }
        _ => return Ok(None),
    };
    opened
        .map(Some)
        .map_err(|failure| RpcError::refused(failure.to_string()))
}

fn cannot(path: &str, error: &io::Error) -> Failure {
    Failure::new(format!("{path}: {error}"), "")
}

/// Opens a file or a pipe; a pipe whose other end has gone keeps nobody waiting.
fn open_path(path: &str, options: &mut std::fs::OpenOptions) -> Result<File, Failure> {
    let nonblocking = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or(0);
    if !Path::new(path).is_absolute() {
        return Err(Failure::new(
            format!("{path}: the path is not absolute"),
            "",
        ));
    }
    let file = options.custom_flags(nonblocking).open(path);
    let file = file.map_err(|error| cannot(path, &error))?;
    fcntl_setfl(&file, OFlags::empty()).map_err(|error| cannot(path, &error.into()))?;
    Ok(file)
}

/// A file, device or pipe; no disk, and none will be made of it while this is there.
struct Opened {
    file: File,
    /// A pipe has none.
    lock: Option<Locked>,
}

impl Opened {
    fn new(
        path: &str,
        file: File,
        lock: fn(&Path, File) -> Result<Locked, FileError>,
    ) -> io::Result<Self> {
        let kind = file.metadata()?.file_type();
        let can_be_disk = kind.is_file() || kind.is_block_device();
        let lock = can_be_disk
            .then(|| lock(Path::new(path), file.try_clone()?).map_err(io::Error::other))
            .transpose()?;
        Ok(Self { file, lock })
    }
}

fn to_read(path: &str) -> Result<Opened, Failure> {
    let file = open_path(path, File::options().read(true))?;
    Opened::new(path, file, Locked::share).map_err(|error| Failure::new(error.to_string(), ""))
}

/// What is written to once the first piece comes: the order may be refused. What is there keeps what it has
/// until then, and what is not there is made then.
enum Written {
    There(Opened),
    ToMake(String),
}

impl Written {
    /// An image is written with holes, which only a file has.
    fn for_image(self, path: &str) -> Result<Self, Failure> {
        let is_other = match &self {
            Self::There(opened) => !opened.file.metadata().is_ok_and(|of| of.is_file()),
            Self::ToMake(_) => false,
        };
        match is_other {
            true => Err(Failure::new(
                format!("{path}: an image is written to a file, and this is none"),
                "export it to a file, or send it (`corebay volume send`)",
            )),
            false => Ok(self),
        }
    }

    fn open(self) -> io::Result<Opened> {
        match self {
            Self::There(opened) => Ok(opened),
            Self::ToMake(path) => File::create_new(&path)
                .map_err(|error| told(&path, &error))
                .and_then(|file| Opened::new(&path, file, Locked::take)),
        }
    }
}

fn told(path: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{path}: {error}"))
}

/// An image's file that is being written.
enum ImageFile {
    /// It was there. What is left of one that is cut off is emptied, so that it is no image.
    There(Opened),
    /// It has another name until it is whole; what an attempt that was cut off has left there is nobody's.
    New { part: String, path: String },
}

impl ImageFile {
    fn open(to_write: Written) -> io::Result<(Self, File)> {
        match to_write {
            Written::There(opened) => {
                let file = opened.file.try_clone()?;
                Ok((Self::There(opened), file))
            }
            Written::ToMake(path) => {
                let part = format!("{path}{PART}");
                let mut how = File::options();
                let file = how.write(true).create(true).open(&part);
                let file = file.map_err(|error| told(&part, &error))?;
                // Two at once would spoil each other's.
                let opened = Opened::new(&part, file, Locked::take)?;
                Ok((Self::New { part, path }, opened.file))
            }
        }
    }

    /// All of it is there and durable.
    fn finish(&self) -> io::Result<()> {
        let Self::New { part, path } = self else {
            return Ok(());
        };
        // What has come there meanwhile is somebody's.
        if Path::new(path).try_exists()? {
            return Err(told(path, &io::ErrorKind::AlreadyExists.into()));
        }
        std::fs::rename(part, path).map_err(|error| told(path, &error))?;
        let folder = Path::new(path).parent().map(File::open).transpose()?;
        folder.map_or(Ok(()), |folder| folder.sync_all())
    }

    fn give_up(&self) {
        match self {
            Self::There(opened) => drop(opened.file.set_len(0)),
            Self::New { part, .. } => drop(std::fs::remove_file(part)),
        }
    }
}

fn to_write(path: &str) -> Result<Written, Failure> {
    let is_new = Path::new(path).is_absolute() && matches!(Path::new(path).try_exists(), Ok(false));
    if is_new {
        return Ok(Written::ToMake(path.to_owned()));
    }
    let mut how = File::options();
    how.write(true);
    let file = open_path(path, &mut how)?;
    let opened = Opened::new(path, file, Locked::take);
    opened
        .map(Written::There)
        .map_err(|error| Failure::new(error.to_string(), ""))
}

fn start(body: impl FnOnce() + Send + 'static) -> Result<(), Failure> {
    spawn("corebay-stream".into(), body).map(drop)
}

fn sink(to_write: Written) -> Result<Stream, Failure> {
    let (to, pieces) = sync_channel::<Vec<u8>>(PIECES_MAX);
    let (ending, ended) = channel();
    start(move || {
        let write = || -> io::Result<()> {
            let Ok(first) = pieces.recv() else {
                return Ok(());
            };
            let mut opened = to_write.open()?;
            let file = &mut opened.file;
            // A pipe has nothing to cut off or to sync.
            let is_file = file.metadata().is_ok_and(|metadata| metadata.is_file());
            if is_file {
                file.set_len(0)?;
            }
            file.write_all(&first)?;
            pieces.iter().try_for_each(|piece| file.write_all(&piece))?;
            let _ = ending.send(Step::Written);
            if is_file { file.sync_all() } else { Ok(()) }
        };
        let _ = ending.send(Step::Ended(write()));
    })?;
    Ok(Stream::Sink(to, ended))
}

fn source(mut opened: Opened) -> Result<Stream, Failure> {
    let (to, pieces) = sync_channel(PIECES_MAX);
    start(move || {
        loop {
            let mut piece = vec![0; PIECE_BYTES];
            let read = opened.file.read(&mut piece);
            let last = !matches!(read, Ok(count) if count > 0);
            let read = read.map(|count| {
                piece.truncate(count);
                piece
            });
            if last {
                drop(opened.lock.take());
            }
            // An empty piece is the end.
            if to.send(read).is_err() || last {
                return;
            }
        }
    })?;
    Ok(Stream::Source(pieces))
}

fn image_sink(to_write: Written) -> Result<Stream, Failure> {
    let (to, parts) = sync_channel(PIECES_MAX);
    let (ending, ended) = channel();
    start(move || {
        let write = || -> io::Result<()> {
            let Some(ImagePart::Length(length)) = parts.iter().next() else {
                return Ok(());
            };
            let (to, file) = ImageFile::open(to_write)?;
            let written = write_image(file, length, &parts, &ending);
            let written = written.and_then(|()| to.finish());
            written.inspect_err(|_| to.give_up())
        };
        let _ = ending.send(Step::Ended(write()));
    })?;
    Ok(Stream::ImageSink(to, ended))
}

fn write_image(
    file: File,
    length: u64,
    parts: &Receiver<ImagePart>,
    ending: &Sender<Step>,
) -> io::Result<()> {
    let mut image = SparseFile::create(file, length)?;
    let mut is_whole = false;
    for part in parts.iter() {
        match part {
            ImagePart::Piece(piece) => image.write(&piece)?,
            ImagePart::End => is_whole = true,
            ImagePart::Length(_) => {}
        }
    }
    if !is_whole {
        return Err(io::ErrorKind::Interrupted.into());
    }
    let _ = ending.send(Step::Written);
    image.finish()
}

fn image_source(opened: Opened, path: &str) -> Result<Stream, Failure> {
    let file = opened.file.try_clone();
    let file = file.map_err(|error| cannot(path, &error))?;
    let metadata = file.metadata().map_err(|error| cannot(path, &error))?;
    let changed = (metadata.mtime(), metadata.mtime_nsec());
    let kind = metadata.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        let message = format!("{path}: an image is a file or a block device, and this is none");
        return Err(Failure::new(message, ""));
    }
    let image = SparseFile::open(file);
    let mut image = image.map_err(|error| cannot(path, &error))?;
    if image.is_empty() {
        return Err(Failure::new(format!("{path}: the image is empty"), ""));
    }
    let length = image.len();
    let (to, pieces) = sync_channel(PIECES_MAX);
    start(move || {
        while let Some(read) = image.read().transpose() {
            let failed = read.is_err();
            if to.send(read).is_err() || failed {
                return;
            }
        }
        drop(opened);
    })?;
    let crc = corebay_lvol::format::crc32c(path.as_bytes());
    let which = format!("image {length} {}.{:09} {crc:08x}", changed.0, changed.1);
    let about = ImageAbout {
        length,
        // In units of 512 bytes, whatever the file system's blocks; none of a device.
        taken_bytes: (metadata.blocks() * 512).min(length),
        which,
    };
    Ok(Stream::ImageSource(pieces, about))
}

/// Something that takes long.
pub struct Work {
    what: &'static str,
    /// The pool may get another name meanwhile.
    pool: Rc<OpenPool>,
    /// What it was called when the work began.
    name: String,
    /// What it needs: a snapshot's base, too.
    of: Vec<VolumeId>,
    done_bytes: Cell<u64>,
    total_bytes: Cell<u64>,
    /// Somebody has ordered its end.
    is_cancelled: Cell<bool>,
}

impl Work {
    /// What it is called now.
    fn name(&self) -> String {
        let record = self.of.first().map(|id| self.pool.pool.volume(*id));
        let record = record.and_then(Result::ok);
        record.map_or_else(|| self.name.clone(), |record| record.name)
    }

    /// True where it is work on this volume, or on any of the pool.
    fn is_on(&self, pool: &Rc<OpenPool>, name: Option<&str>) -> bool {
        let is_named = |name: &str| match self.of.is_empty() {
            true => self.name == name,
            false => pool.pool.find(name).is_some_and(|id| self.of.contains(&id)),
        };
        Rc::ptr_eq(&self.pool, pool) && name.is_none_or(is_named)
    }

    fn refuse_cancelled(&self) -> Result<(), RpcError> {
        match self.is_cancelled.get() {
            true => Err(RpcError::refused(format!(
                "the {} was ended by order",
                self.what
            ))),
            false => Ok(()),
        }
    }
}

/// It is listed for as long as this is there.
struct Working<'h>(&'h Home, Rc<Work>);

impl Drop for Working<'_> {
    fn drop(&mut self) {
        let mut work = self.0.work.borrow_mut();
        work.retain(|known| !Rc::ptr_eq(known, &self.1));
    }
}

impl Working<'_> {
    fn done(&self, bytes: u64) {
        self.1.done_bytes.set(bytes);
    }
}

impl Home {
    /// What is under way.
    pub fn describe_work(&self, pool: Option<&str>) -> Value {
        let work = self.work.borrow();
        let wanted = |work: &&Rc<Work>| pool.is_none_or(|pool| work.pool.pool.name() == pool);
        let work = work.iter().filter(wanted).map(|work| {
            json!({
                "what": work.what,
                "pool": work.pool.pool.name(),
                "name": work.name(),
                "done_bytes": work.done_bytes.get(),
                "total_bytes": work.total_bytes.get(),
            })
        });
        json!(work.collect::<Vec<_>>())
    }

    /// Nothing is taken from hosts for what cannot be done while work is under way: on a volume, or on any
    /// of the pool.
    pub fn refuse_at_work(&self, pool: &Rc<OpenPool>, name: Option<&str>) -> Result<(), RpcError> {
        let all = self.work.borrow();
        match all.iter().find(|work| work.is_on(pool, name)) {
            Some(work) => Err(RpcError::refused(format!(
                "the {} of \"{}\" is under way: wait for its end, or end it (`corebay volume cancel`)",
                work.what,
                work.name()
            ))),
            None => Ok(()),
        }
    }

    /// What an image is being written of is written by nobody meanwhile.
    pub fn refuse_imaged(&self, id: VolumeId, pool: &Rc<OpenPool>) -> Result<(), RpcError> {
        let all = self.work.borrow();
        let is_it = |work: &&Rc<Work>| {
            work.what == IMAGE && Rc::ptr_eq(&work.pool, pool) && work.of.contains(&id)
        };
        all.iter().find(is_it).map_or(Ok(()), |work| {
            Err(RpcError::refused(format!(
                "an image of \"{}\" is being written, which must not change meanwhile: wait for its end, or \
                 end it (`corebay volume cancel`)",
                work.name()
            )))
        })
    }

    fn begin(
        &self,
        what: &'static str,
        (pool, name): (&Rc<OpenPool>, &str),
        of: &[VolumeId],
        total_bytes: u64,
    ) -> Working<'_> {
        let work = Rc::new(Work {
            what,
            pool: pool.clone(),
            name: name.to_owned(),
            of: of.to_vec(),
            done_bytes: Cell::new(0),
            total_bytes: Cell::new(total_bytes),
            is_cancelled: Cell::new(false),
        });
        self.work.borrow_mut().push(work.clone());
        Working(self, work)
    }

    /// Ends work that is under way on a volume, at its next piece.
    ///
    /// # Errors
    /// Where there is none.
    pub fn cancel(&self, name: &str) -> Outcome {
        let (pool, name) = self.place(name)?;
        let of = pool.pool.name();
        let all = self.work.borrow();
        let mut found = all
            .iter()
            .filter(|work| work.is_on(&pool, Some(name)))
            .peekable();
        if found.peek().is_none() {
            let message = format!("nothing is under way on \"{name}\"");
            return Err(RpcError::missing(message));
        }
        found.for_each(|work| work.is_cancelled.set(true));
        Ok(json!({ "pool": of, "name": name, "state": "ending" }))
    }

    /// Gives a piece to the other side; false where that takes nothing any more.
    async fn push<T>(
        &self,
        working: &Working<'_>,
        to: &SyncSender<T>,
        mut piece: T,
    ) -> Result<bool, RpcError> {
        let since = self.core.reactor.now();
        working.1.refuse_cancelled()?;
        loop {
            match to.try_send(piece) {
                Ok(()) => return Ok(true),
                Err(TrySendError::Full(back)) => piece = back,
                Err(TrySendError::Disconnected(_)) => return Ok(false),
            }
            let refuse = || working.1.refuse_cancelled();
            wait(&self.core.reactor, Some(since), &refuse).await?;
        }
    }

    /// The next piece; `None` where nothing comes any more.
    async fn pull<T>(
        &self,
        working: &Working<'_>,
        from: &Receiver<T>,
    ) -> Result<Option<T>, RpcError> {
        let since = self.core.reactor.now();
        let refuse = || working.1.refuse_cancelled();
        next(&self.core.reactor, from, Some(since), refuse).await
    }

    /// How the file's side has ended.
    async fn ended(&self, working: &Working<'_>, ended: &Receiver<Step>) -> Result<(), RpcError> {
        ended_well(&self.core.reactor, ended, || working.1.refuse_cancelled()).await
    }

    /// Sends a snapshot, or what has changed since another one.
    pub async fn send(&self, send: &VolumeSend, stream: Option<Stream>) -> Outcome {
        let Some(Stream::Sink(to, ended)) = stream else {
            return Err(RpcError::params("there is no file to send to"));
        };
        let (pool, id, record) = self.volume(&send.snapshot)?;
        let from = send.from.as_ref().map(|from| self.volume(from));
        let from = from.transpose()?.map(|(_, from, _)| from);
        if send.start > record.blocks {
            return Err(RpcError::params(format!(
                "\"{}\" has {} blocks: --start is that many at most, and no more is to be sent from there on",
                record.name, record.blocks
            )));
        }
        let sender = pool.pool.send(from, id, send.start);
        let mut sender = sender.map_err(|error| match error {
            PoolError::WrongKind => RpcError::params("snapshots are sent: take one first"),
            other => refusal(other),
        })?;
        let size = pool.info.block_size;
        let needed: Vec<VolumeId> = [id].into_iter().chain(from).collect();
        let bytes = size.bytes_of(record.blocks);
        let working = self.begin("send", (&pool, &record.name), &needed, bytes);
        let (mut out, mut more, mut sent) = (Vec::new(), true, 0u64);
        while more {
            more = sender.next(&mut out).await.map_err(refusal)?;
            if out.len() >= PIECE_BYTES || (!more && !out.is_empty()) {
                sent += out.len() as u64;
                let piece = std::mem::take(&mut out);
                if !self.push(&working, &to, piece).await? {
                    break;
                }
            }
            working.done(size.bytes_of(sender.progress().position));
        }
        drop(to);
        self.ended(&working, &ended).await?;
        Ok(json!({
            "pool": pool.pool.name(), "name": record.name, "stream_bytes": sent,
            "data_bytes": size.bytes_of(sender.progress().data_blocks),
        }))
    }

    /// Receives a stream into a volume.
    pub async fn receive(&self, receive: &VolumeReceive, stream: Option<Stream>) -> Outcome {
        let Some(Stream::Source(from)) = stream else {
            return Err(RpcError::params("there is no file to receive from"));
        };
        let (pool, name) = self.place(&receive.volume)?;
        check_name(name)?;
        receive.snapshot.as_deref().map_or(Ok(()), check_name)?;
        let snapshot = receive.snapshot.as_ref();
        let options = ReceiveOptions {
            volume: identity(name),
            snapshot: snapshot.map(|snapshot| format!("{name}@{snapshot}")),
            rename: snapshot_of,
        };
        let size = pool.info.block_size;
        let working = self.begin("receive", (&pool, name), &[], 0);
        let mut receiver = pool.pool.receive(&options);
        let mut done: Option<VolumeId> = None;
        while let Some(piece) = self.pull(&working, &from).await? {
            let piece = piece.map_err(|error| RpcError::refused(format!("the stream: {error}")))?;
            if piece.is_empty() {
                break;
            }
            match receiver.push(&piece).await {
                Ok(found) => done = done.or(found),
                // What was received before is there.
                Err(ReceiveError::AlreadyThere(id)) => return self.had(&pool, name, id),
                Err(error) => {
                    let is_of_stream = matches!(error, ReceiveError::Stream(_));
                    let why = refused(&pool, error);
                    if !is_of_stream {
                        return Err(why);
                    }
                    // How far it came is kept.
                    let _ = receiver.finish().await;
                    return Err(and_how_to_go_on(why, &pool, name));
                }
            }
            if let Some(about) = receiver.about() {
                working.1.total_bytes.set(size.bytes_of(about.blocks));
            }
            working.done(size.bytes_of(receiver.position()));
        }
        let finished = receiver.finish().await;
        finished.map_err(|error| and_how_to_go_on(refused(&pool, error), &pool, name))?;
        let _turn = self.turns.of(&pool.on).await;
        self.attach_named(&pool).await;
        match done {
            Some(id) => self.received(&pool, id),
            None => Err(RpcError::refused("the stream has no end")),
        }
    }

    /// What a stream is about is there: as asked, if it is the volume's.
    fn had(&self, pool: &Rc<OpenPool>, volume: &str, id: VolumeId) -> Outcome {
        if pool
            .pool
            .origin_of(id)
            .is_some_and(|of| pool.pool.find(volume) == Some(of))
        {
            return self.received(pool, id);
        }
        let there = pool.pool.volume(id).map_err(refusal)?.name;
        Err(RpcError::conflict(format!(
            "the snapshot is here already, as \"{there}\": `corebay volume clone {there} {volume}` \
             makes a volume of it"
        )))
    }

    fn received(&self, pool: &Rc<OpenPool>, id: VolumeId) -> Outcome {
        let record = pool.pool.volume(id).map_err(refusal)?;
        Ok(describe_volume(pool, id, &record))
    }

    /// Writes a volume or a snapshot to a raw image.
    pub async fn write_image(&self, export: &VolumeExport, stream: Option<Stream>) -> Outcome {
        let Some(Stream::ImageSink(to, ended)) = stream else {
            return Err(RpcError::params("there is no file to write to"));
        };
        let (pool, id, record) = self.volume(&export.volume)?;
        refuse_torn_image(&pool, id, &record)?;
        let mut image = pool.pool.read_image(id).map_err(refusal)?;
        let working = self.begin(IMAGE, (&pool, &record.name), &[id], image.len());
        let length = ImagePart::Length(image.len());
        let mut going = self.push(&working, &to, length).await?;
        while going && let Some(piece) = image.next().await.map_err(refusal)? {
            going = self.push(&working, &to, ImagePart::Piece(piece)).await?;
            working.done(image.position());
        }
        if going {
            self.push(&working, &to, ImagePart::End).await?;
        }
        drop(to);
        self.ended(&working, &ended).await?;
        self.received(&pool, id)
    }

    /// Makes a volume of a raw image.
    ///
    /// 1. It is made under another name, and deleted first where a former attempt has left one.
    /// 2. The image is written and durable, and it is noted which one it was.
    /// 3. It gets its name: whoever asks for the same again finds it whole.
    pub async fn read_image(&self, import: &VolumeImport, stream: Option<Stream>) -> Outcome {
        let Some(Stream::ImageSource(from, about)) = stream else {
            return Err(RpcError::params("there is no file to read"));
        };
        let ImageAbout {
            length,
            taken_bytes,
            which,
        } = about;
        let (pool, name) = self.place(&import.volume)?;
        check_name(name)?;
        let blocks = blocks_of(&pool, length)?;
        let begun = format!("{name}{IMPORTING}");
        if let Some(id) = pool.pool.find(name) {
            let record = pool.pool.volume(id).map_err(refusal)?;
            if record.attributes != which.as_bytes() {
                return Err(already(&pool, &record));
            }
            let _turn = self.turns.of(&pool.on).await;
            return self
                .export_and_describe(&pool, id, import.export.as_ref())
                .await;
        }
        if let Some(left) = pool.pool.find(&begun) {
            // Where it is under way, it is busy.
            pool.pool.delete(left).await.map_err(refusal)?;
        }
        let available = pool.pool.status().available_bytes;
        if taken_bytes > available {
            return Err(RpcError::full(format!(
                "the image takes {}, and {} may still be taken of the pool \"{}\"; where much of it is \
                 zeroes, `fallocate --dig-holes FILE` makes holes of them, which take nothing",
                Size::from_bytes(taken_bytes),
                Size::from_bytes(available),
                pool.pool.name()
            )));
        }
        let made = identity(&begun);
        drop(self.check_wish(&pool, &identity(name), import.export.as_ref())?);
        let working = self.begin("import", (&pool, name), &[], length);
        let made = pool.pool.create_volume(&made, blocks, false).await;
        let id = made.map_err(|error| refusal_in(&pool, None, error))?;
        if let Err(why) = self.fill(&pool, id, &working, &from).await {
            // Its space may be what is missing.
            let _ = pool.pool.delete(id).await;
            return Err(why);
        }
        let noted = pool.pool.set_attributes(id, which.as_bytes()).await;
        noted.map_err(refusal)?;
        let _turn = self.turns.of(&pool.on).await;
        pool.pool.rename(id, name).await.map_err(refusal)?;
        self.attach_named(&pool).await;
        self.export_and_describe(&pool, id, import.export.as_ref())
            .await
    }

    /// Writes an image's pieces to a volume, durably.
    async fn fill(
        &self,
        pool: &OpenPool,
        id: VolumeId,
        working: &Working<'_>,
        from: &Receiver<io::Result<Piece>>,
    ) -> Result<(), RpcError> {
        let image = pool.pool.write_image(id).map_err(refusal)?;
        while let Some(piece) = self.pull(working, from).await? {
            let piece = piece.map_err(|error| RpcError::refused(format!("the image: {error}")))?;
            let written = image.write(&piece).await;
            written.map_err(|error| refusal_in(pool, None, PoolError::from(error)))?;
            working.done(piece.at + piece.bytes.len() as u64);
        }
        let finished = image.finish().await;
        finished.map_err(|error| refusal_in(pool, None, PoolError::from(error)))
    }

    /// Copies all that a volume shares with others.
    pub async fn inflate(&self, name: &str) -> Outcome {
        let (pool, id, record) = self.volume(name)?;
        let size = pool.info.block_size;
        let working = self.begin(
            "inflate",
            (&pool, &record.name),
            &[id],
            size.bytes_of(record.blocks),
        );
        let full = |error| refusal_in(&pool, None, error);
        let mut inflate = pool.pool.inflate(id).map_err(full)?;
        while let Some(progress) = inflate.step().await.map_err(full)? {
            working.done(size.bytes_of(progress.position));
            working.1.refuse_cancelled()?;
        }
        drop(inflate);
        self.received(&pool, id)
    }
}

/// An image of what hosts may write would be of no point in time.
fn refuse_torn_image(pool: &OpenPool, id: VolumeId, record: &VolumeRecord) -> Result<(), RpcError> {
    let name = &record.name;
    if record.receiving.is_some() {
        return Err(RpcError::refused(format!(
            "\"{name}\" is being received, and not whole"
        )));
    }
    let attached = pool.attached.borrow();
    let shown = attached.get(&id);
    let shown = shown.and_then(|attached| attached.subsystem.namespace(attached.nsid));
    match shown.is_some_and(|shown| !shown.is_read_only()) {
        true => Err(RpcError::refused(format!(
            "hosts may be writing \"{name}\", and the image would be of no point in time: take a snapshot \
             first (`corebay snapshot create {name}@NAME`), and export that"
        ))),
        false => Ok(()),
    }
}

/// Waits a little for the other side, unless it has not moved `since` then for too long, or nobody wants it
/// any more.
async fn wait(
    reactor: &Reactor,
    since: Option<Time>,
    refuse: &impl Fn() -> Result<(), RpcError>,
) -> Result<(), RpcError> {
    refuse()?;
    if since.is_some_and(|since| reactor.now() > since.plus(IDLE_MAX)) {
        let minutes = IDLE_MAX.as_secs() / 60;
        let message = format!("the file or pipe has not moved for {minutes} minutes");
        return Err(RpcError::refused(message));
    }
    reactor.sleep(PAUSE).await;
    Ok(())
}

/// What comes next from the other side; `None` where nothing comes any more.
async fn next<T>(
    reactor: &Reactor,
    from: &Receiver<T>,
    since: Option<Time>,
    refuse: impl Fn() -> Result<(), RpcError>,
) -> Result<Option<T>, RpcError> {
    refuse()?;
    loop {
        match from.try_recv() {
            Ok(piece) => return Ok(Some(piece)),
            Err(TryRecvError::Disconnected) => return Ok(None),
            Err(TryRecvError::Empty) => wait(reactor, since, &refuse).await?,
        }
    }
}

/// How the other side has ended that was given all pieces.
async fn ended_well(
    reactor: &Reactor,
    steps: &Receiver<Step>,
    refuse: impl Fn() -> Result<(), RpcError>,
) -> Result<(), RpcError> {
    let mut since = Some(reactor.now());
    loop {
        match next(reactor, steps, since, &refuse).await? {
            Some(Step::Written) => since = None,
            Some(Step::Ended(Ok(()))) => return Ok(()),
            Some(Step::Ended(Err(error))) => {
                return Err(RpcError::refused(format!("the file or pipe: {error}")));
            }
            None => return Err(RpcError::refused("the file or pipe is gone")),
        }
    }
}

/// What a snapshot is called that comes in a stream, after the volume that it becomes one of.
fn snapshot_of(volume: &str, sent: &str) -> Option<String> {
    let (_, name) = sent.rsplit_once('@')?;
    check_name(name).ok()?;
    Some(format!("{volume}@{name}"))
}

/// The block that the stream of a volume goes on from, where it was cut off.
fn going_on_from(pool: &OpenPool, volume: &str) -> Option<u64> {
    let record = pool.pool.volume(pool.pool.find(volume)?).ok()?;
    Some(record.receiving?.next())
}

/// What is refused, and what can be done about it where a part of the stream has come.
fn and_how_to_go_on(mut why: RpcError, pool: &OpenPool, volume: &str) -> RpcError {
    if let Some(block) = going_on_from(pool, volume) {
        why.message += &format!(
            "; what came before is kept: send the rest with --start {block}, or give it up (`corebay volume \
             receive {volume} --abort`)"
        );
    }
    why
}

fn refused(pool: &OpenPool, error: ReceiveError) -> RpcError {
    match error {
        ReceiveError::Pool(PoolError::BadName) => RpcError::params(
            "what the snapshot was called where it came from is no name here: say --snapshot NAME",
        ),
        ReceiveError::Pool(PoolError::Exists) => RpcError::conflict(
            "the volume, or a snapshot of this name, is there already: receive into another volume, or \
             say --snapshot NAME",
        ),
        ReceiveError::Pool(error) => refusal_in(pool, None, error),
        ReceiveError::Gap(_) | ReceiveError::OtherStream | ReceiveError::Changed => {
            RpcError::conflict(error.to_string())
        }
        other => RpcError::refused(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use corebay_conformance::TestCore;

    use super::*;

    /// What becomes of an order whose other side has come so far, does nothing for long, and then ends well.
    fn after_long(step: Option<Step>) -> Result<(), RpcError> {
        let core = TestCore::single();
        let (to, from) = channel();
        step.into_iter().for_each(|step| to.send(step).unwrap());
        let reactor = core.reactor.clone();
        let ended = core.spawn(async move { ended_well(&reactor, &from, || Ok(())).await });
        let mut now = core.reactor.now();
        for turn in 0..20 {
            match turn {
                5 => now = now.plus(2 * IDLE_MAX),
                // Nobody may be listening any more.
                10 => drop(to.send(Step::Ended(Ok(())))),
                _ => now = now.plus(2 * PAUSE),
            }
            core.reactor.poll_once(now);
        }
        ended.take()
    }

    #[test]
    fn a_file_may_be_made_durable_for_as_long_as_it_needs() {
        assert!(after_long(Some(Step::Written)).is_ok());
        // While it is written to, it has to move.
        let idle = after_long(None).unwrap_err();
        assert!(idle.message.contains("has not moved"), "{}", idle.message);
    }
}
