//! Undoes a content coding, as the bytes pass, within bounds of memory and work.

use std::io::{self, Write};
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use brotli_decompressor::{
    Allocator, BrotliDecompressStream, BrotliResult, BrotliState, HuffmanCode, SliceWrapper,
    StandardAlloc,
};
use flate2::write::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

/// Bytes of input that are looked at together, counted from the first one, so that the bounds do not
/// depend on how the input is cut.
const CELL: u64 = 4 << 10;
/// Each cell may become so many times as long. Answers of APIs shrink to a tenth, seldom to a
/// fiftieth; what shrinks more is there to cost work.
const MAX_RATIO: u64 = 200;
/// The longest output.
const MAX_OUTPUT: u64 = 256 << 20;
/// What a decoder of gzip or deflate holds: its window, its tables, and a buffer for output.
const DEFLATE_MEMORY: usize = 96 << 10;
/// What a decoder of zstd holds besides its window: two blocks as they came, the literals of one,
/// sequences and tables.
const ZSTD_MEMORY: usize = 512 << 10;
/// The largest window that a zstd content coding may ask for (RFC 9659).
const ZSTD_MAX_WINDOW: u64 = 8 << 20;
/// The most that a zstd block holds, as it comes and as it becomes.
const ZSTD_BLOCK: usize = 128 << 10;
const BROTLI_OUTPUT: usize = 16 << 10;

/// Memory that all decoders of a process share.
#[derive(Clone, Debug)]
pub struct MeterMemory(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    limit: usize,
    used: AtomicUsize,
}

impl MeterMemory {
    /// At most `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self(Arc::new(Shared {
            limit,
            used: AtomicUsize::new(0),
        }))
    }

    /// How many bytes are taken.
    pub fn used(&self) -> usize {
        self.0.used.load(Ordering::Relaxed)
    }

    fn take(&self, bytes: usize) -> Result<(), GaveUp> {
        let take = |used: usize| used.checked_add(bytes).filter(|sum| *sum <= self.0.limit);
        let taken = self
            .0
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
        taken.map(drop).map_err(|_| GaveUp::Memory)
    }

    fn give_back(&self, bytes: usize) {
        self.0.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// What one decoder holds of the shared memory, given back at its end.
#[derive(Debug)]
struct Held {
    memory: MeterMemory,
    bytes: usize,
}

impl Held {
    fn take(memory: &MeterMemory, bytes: usize) -> Result<Self, GaveUp> {
        memory.take(bytes)?;
        Ok(Self {
            memory: memory.clone(),
            bytes,
        })
    }

    /// Holds at least `bytes` from now on.
    fn grow_to(&mut self, bytes: usize) -> Result<(), GaveUp> {
        let more = bytes.saturating_sub(self.bytes);
        self.memory.take(more)?;
        self.bytes += more;
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.memory.give_back(self.bytes);
    }
}

/// Why an answer is not read on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GaveUp {
    /// Its content coding, or several of them, is not one that is undone here.
    Coding,
    /// It is much longer than what came.
    TooLong,
    /// The meters hold as much memory as they may.
    Memory,
    /// It is not what its headers say that it is.
    Malformed,
}

impl GaveUp {
    /// Every reason.
    pub const ALL: [Self; 4] = [Self::Coding, Self::TooLong, Self::Memory, Self::Malformed];

    /// It in a word, for metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Coding => "coding",
            Self::TooLong => "too_long",
            Self::Memory => "memory",
            Self::Malformed => "malformed",
        }
    }
}

/// A content coding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Coding {
    Identity,
    Gzip,
    Deflate,
    Brotli,
    Zstd,
}

impl Coding {
    /// The coding with this name (RFC 9110 section 8.4.1).
    pub(crate) fn named(name: &str) -> Option<Self> {
        let known = [
            ("", Self::Identity),
            ("identity", Self::Identity),
            ("gzip", Self::Gzip),
            ("x-gzip", Self::Gzip),
            ("deflate", Self::Deflate),
            ("br", Self::Brotli),
            ("zstd", Self::Zstd),
        ];
        let mut known = known.into_iter();
        known
            .find(|(word, _)| word.eq_ignore_ascii_case(name))
            .map(|(_, coding)| coding)
    }
}

/// A decoder, and what its output goes to.
pub(crate) struct Inflate<W: Write> {
    decoder: Decoder<W>,
    /// How many bytes came in.
    input: u64,
    /// Memory of a decoder that holds the same from its start to its end.
    _held: Option<Held>,
}

enum Decoder<W: Write> {
    Identity(W),
    Gzip(MultiGzDecoder<Bounded<W>>),
    /// Whether it is zlib, as it should be, or raw, as some send it, shows in the first two bytes.
    Deflate(Bounded<W>, Vec<u8>),
    Zlib(ZlibDecoder<Bounded<W>>),
    Raw(DeflateDecoder<Bounded<W>>),
    Brotli(Box<Brotli>, Bounded<W>),
    Zstd(Box<Zstd>, Bounded<W>),
    /// Only while one becomes another.
    None,
}

impl<W: Write> Inflate<W> {
    /// A decoder of `coding` whose output goes to `to`.
    pub(crate) fn new(coding: Coding, memory: &MeterMemory, to: W) -> Result<Self, GaveUp> {
        let held = match coding {
            Coding::Gzip | Coding::Deflate => Some(Held::take(memory, DEFLATE_MEMORY)?),
            Coding::Identity | Coding::Brotli | Coding::Zstd => None,
        };
        let decoder = match coding {
            Coding::Identity => Decoder::Identity(to),
            Coding::Gzip => Decoder::Gzip(MultiGzDecoder::new(Bounded::new(to))),
            Coding::Deflate => Decoder::Deflate(Bounded::new(to), Vec::new()),
            Coding::Brotli => Decoder::Brotli(Box::new(Brotli::new(memory)), Bounded::new(to)),
            Coding::Zstd => Decoder::Zstd(Box::new(Zstd::new(memory)?), Bounded::new(to)),
        };
        Ok(Self {
            decoder,
            input: 0,
            _held: held,
        })
    }

    /// Takes the next bytes. After an error it takes no more.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<(), GaveUp> {
        if let Decoder::Identity(to) = &mut self.decoder {
            return to.write_all(bytes).map_err(|_| GaveUp::Malformed);
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            let left = CELL - self.input % CELL;
            let cells = self.input / CELL + 1;
            let most = usize::try_from(left).unwrap_or(usize::MAX);
            let (cell, after) = rest.split_at(rest.len().min(most));
            if let Some(to) = self.decoder.bounded() {
                to.left_in_all = (cells * CELL * MAX_RATIO).min(MAX_OUTPUT);
            }
            self.input += cell.len() as u64;
            self.decoder.push(cell)?;
            rest = after;
        }
        Ok(())
    }

    /// Ends it: whether the coded bytes were whole, and where the output went.
    pub(crate) fn finish(mut self) -> (bool, Option<W>) {
        let is_whole = self.decoder.finish();
        let to = match &mut self.decoder {
            Decoder::Identity(_) => None,
            other => other.bounded().and_then(|to| to.to.take()),
        };
        match self.decoder {
            Decoder::Identity(to) => (true, Some(to)),
            _ => (is_whole, to),
        }
    }
}

impl<W: Write> Decoder<W> {
    fn bounded(&mut self) -> Option<&mut Bounded<W>> {
        match self {
            Self::Identity(_) | Self::None => None,
            Self::Gzip(decoder) => Some(decoder.get_mut()),
            Self::Zlib(decoder) => Some(decoder.get_mut()),
            Self::Raw(decoder) => Some(decoder.get_mut()),
            Self::Deflate(to, ..) | Self::Brotli(_, to) | Self::Zstd(_, to) => Some(to),
        }
    }

    fn push(&mut self, bytes: &[u8]) -> Result<(), GaveUp> {
        match self {
            Self::Identity(_) | Self::None => Ok(()),
            Self::Gzip(decoder) => write_to(decoder, bytes),
            Self::Zlib(decoder) => write_to(decoder, bytes),
            Self::Raw(decoder) => write_to(decoder, bytes),
            Self::Brotli(decoder, to) => decoder.push(bytes, to),
            Self::Zstd(decoder, to) => decoder.push(bytes, to),
            Self::Deflate(_, start) => {
                start.extend_from_slice(bytes);
                match start.len() {
                    0 | 1 => Ok(()),
                    _ => self.choose(),
                }
            }
        }
    }

    fn choose(&mut self) -> Result<(), GaveUp> {
        let Self::Deflate(to, start) = mem::replace(self, Self::None) else {
            return Ok(());
        };
        // RFC 1950 section 2.2: method 8, a window of at most 32 KiB, a multiple of 31.
        let number = u16::from(start[0]) << 8 | u16::from(start[1]);
        let is_zlib = start[0] & 0x0f == 8 && start[0] >> 4 <= 7 && number % 31 == 0;
        *self = match is_zlib {
            true => Self::Zlib(ZlibDecoder::new(to)),
            false => Self::Raw(DeflateDecoder::new(to)),
        };
        self.push(&start)
    }

    /// Hands on what is still held back; whether the coded bytes were whole.
    fn finish(&mut self) -> bool {
        match self {
            Self::Identity(_) => true,
            Self::None | Self::Deflate(..) => false,
            // What came of a broken one is wanted too.
            Self::Gzip(decoder) => decoder.flush().and_then(|()| decoder.try_finish()).is_ok(),
            Self::Zlib(decoder) => decoder.flush().and_then(|()| decoder.try_finish()).is_ok(),
            Self::Raw(decoder) => decoder.flush().and_then(|()| decoder.try_finish()).is_ok(),
            Self::Brotli(decoder, _) => decoder.is_finished,
            Self::Zstd(decoder, to) => decoder.finish(to),
        }
    }
}

fn write_to(decoder: &mut impl Write, bytes: &[u8]) -> Result<(), GaveUp> {
    decoder
        .write_all(bytes)
        .map_err(|error| match error.kind() {
            io::ErrorKind::FileTooLarge => GaveUp::TooLong,
            _ => GaveUp::Malformed,
        })
}

/// Output that ends where its bound is.
struct Bounded<W> {
    to: Option<W>,
    /// How many bytes went out.
    output: u64,
    /// How many bytes may go out, from the first one on.
    left_in_all: u64,
}

impl<W> Bounded<W> {
    fn new(to: W) -> Self {
        Self {
            to: Some(to),
            output: 0,
            left_in_all: 0,
        }
    }
}

impl<W: Write> Write for Bounded<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.output += bytes.len() as u64;
        if self.output > self.left_in_all {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        // A decoder that is dropped may still want to write; nobody listens then.
        if let Some(to) = &mut self.to {
            to.write_all(bytes)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A decoder of brotli (RFC 7932).
struct Brotli {
    state: BrotliState<Charging, Charging, Charging>,
    charged: Arc<Charged>,
    total: usize,
    is_finished: bool,
}

impl Brotli {
    fn new(memory: &MeterMemory) -> Self {
        let charged = Arc::new(Charged {
            memory: memory.clone(),
            bytes: AtomicUsize::new(0),
            is_refused: AtomicBool::new(false),
        });
        let charging = || Charging(StandardAlloc::default(), Arc::clone(&charged));
        Self {
            // Strict: no windows above 16 MiB.
            state: BrotliState::new_strict(charging(), charging(), charging()),
            total: 0,
            is_finished: false,
            charged,
        }
    }

    fn push(&mut self, bytes: &[u8], to: &mut impl Write) -> Result<(), GaveUp> {
        let mut output = [0; BROTLI_OUTPUT];
        let (mut used, mut left) = (0, bytes.len());
        // What follows the end is not looked at.
        while !self.is_finished {
            let (mut written, mut free) = (0, output.len());
            let result = BrotliDecompressStream(
                &mut left,
                &mut used,
                bytes,
                &mut free,
                &mut written,
                &mut output,
                &mut self.total,
                &mut self.state,
            );
            if self.charged.is_refused.load(Ordering::Relaxed) {
                return Err(GaveUp::Memory);
            }
            write_to(to, &output[..written])?;
            match result {
                BrotliResult::ResultSuccess => self.is_finished = true,
                BrotliResult::NeedsMoreOutput => {}
                // It says so with output at hand, too, where that takes more room than there was.
                BrotliResult::NeedsMoreInput if free == 0 => {}
                BrotliResult::NeedsMoreInput => return Ok(()),
                BrotliResult::ResultFailure => return Err(GaveUp::Malformed),
            }
        }
        Ok(())
    }
}

/// What the three allocators of one brotli decoder hold of the shared memory.
struct Charged {
    memory: MeterMemory,
    bytes: AtomicUsize,
    is_refused: AtomicBool,
}

impl Charged {
    fn take(&self, bytes: usize) -> bool {
        let is_taken = self.memory.take(bytes).is_ok();
        match is_taken {
            true => self.bytes.fetch_add(bytes, Ordering::Relaxed),
            false => usize::from(self.is_refused.swap(true, Ordering::Relaxed)),
        };
        is_taken
    }

    fn give_back(&self, bytes: usize) {
        // What was allocated although it was refused is not there to be given back.
        let give = |held: usize| Some(held.saturating_sub(bytes));
        let update = self
            .bytes
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, give);
        self.memory.give_back(update.unwrap_or(0).min(bytes));
    }
}

impl Drop for Charged {
    fn drop(&mut self) {
        self.memory.give_back(*self.bytes.get_mut());
    }
}

struct Charging(StandardAlloc, Arc<Charged>);

/// Tables are below this; the decoder counts on getting them. The window is above, and may be
/// refused.
const BROTLI_TABLES: usize = 64 << 10;

impl Allocator<u8> for Charging {
    type AllocatedMemory = <StandardAlloc as Allocator<u8>>::AllocatedMemory;

    fn alloc_cell(&mut self, length: usize) -> Self::AllocatedMemory {
        match self.1.take(length) || length <= BROTLI_TABLES {
            true => Allocator::<u8>::alloc_cell(&mut self.0, length),
            false => Self::AllocatedMemory::default(),
        }
    }

    fn free_cell(&mut self, data: Self::AllocatedMemory) {
        self.1.give_back(data.slice().len());
        Allocator::<u8>::free_cell(&mut self.0, data);
    }
}

impl Allocator<u32> for Charging {
    type AllocatedMemory = <StandardAlloc as Allocator<u32>>::AllocatedMemory;

    fn alloc_cell(&mut self, length: usize) -> Self::AllocatedMemory {
        self.1.take(length * size_of::<u32>());
        Allocator::<u32>::alloc_cell(&mut self.0, length)
    }

    fn free_cell(&mut self, data: Self::AllocatedMemory) {
        self.1.give_back(size_of_val(data.slice()));
        Allocator::<u32>::free_cell(&mut self.0, data);
    }
}

impl Allocator<HuffmanCode> for Charging {
    type AllocatedMemory = <StandardAlloc as Allocator<HuffmanCode>>::AllocatedMemory;

    fn alloc_cell(&mut self, length: usize) -> Self::AllocatedMemory {
        self.1.take(length * size_of::<HuffmanCode>());
        Allocator::<HuffmanCode>::alloc_cell(&mut self.0, length)
    }

    fn free_cell(&mut self, data: Self::AllocatedMemory) {
        self.1.give_back(size_of_val(data.slice()));
        Allocator::<HuffmanCode>::free_cell(&mut self.0, data);
    }
}

/// A decoder of zstd (RFC 8878), fed whole headers and blocks.
struct Zstd {
    decoder: FrameDecoder,
    held: Held,
    window: u64,
    /// A header or a block, as far as it came.
    input: Vec<u8>,
    at: ZstdAt,
    has_checksum: bool,
    /// How many bytes of the frame were decoded at the most.
    output: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum ZstdAt {
    /// Between two frames, or in the header of one.
    Header,
    Block,
    /// In a frame that is to be skipped.
    Skip(u32),
}

const ZSTD_MAGIC: u32 = 0xFD2F_B528;
/// The magic number of frames to skip; the last four bits are free.
const ZSTD_SKIP: u32 = 0x184D_2A50;
const ZSTD_BLOCK_HEADER: usize = 3;
const ZSTD_CHECKSUM: usize = 4;
/// A raw block that is empty and the last one, and a checksum, which is not checked.
const ZSTD_END: [u8; ZSTD_BLOCK_HEADER + ZSTD_CHECKSUM] = [1, 0, 0, 0, 0, 0, 0];

impl Zstd {
    fn new(memory: &MeterMemory) -> Result<Self, GaveUp> {
        let mut decoder = FrameDecoder::new();
        decoder.set_max_window_size(ZSTD_MAX_WINDOW);
        Ok(Self {
            decoder,
            held: Held::take(memory, ZSTD_MEMORY)?,
            window: 0,
            input: Vec::new(),
            at: ZstdAt::Header,
            has_checksum: false,
            output: 0,
        })
    }

    fn push(&mut self, bytes: &[u8], to: &mut impl Write) -> Result<(), GaveUp> {
        let mut rest = bytes;
        while !rest.is_empty() {
            if let ZstdAt::Skip(left) = self.at {
                let used = rest.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                rest = &rest[used..];
                // `used` is at most `left`.
                self.at = match left - used as u32 {
                    0 => ZstdAt::Header,
                    left => ZstdAt::Skip(left),
                };
                continue;
            }
            let wanted = self.wanted()?;
            let used = rest.len().min(wanted - self.input.len());
            self.input.extend_from_slice(&rest[..used]);
            rest = &rest[used..];
            // With more bytes at hand, more may turn out to be wanted.
            if self.input.len() == self.wanted()? {
                match self.at {
                    ZstdAt::Block => self.block(to)?,
                    _ => self.header()?,
                }
                self.input.clear();
            }
        }
        Ok(())
    }

    /// How long the header or block is, as far as that can be told; more than what is at hand, or
    /// all of it.
    fn wanted(&self) -> Result<usize, GaveUp> {
        match self.at {
            ZstdAt::Block => self.block_length(),
            _ => header_length(&self.input),
        }
    }

    fn block_length(&self) -> Result<usize, GaveUp> {
        let [a, b, c, ..] = self.input[..] else {
            return Ok(ZSTD_BLOCK_HEADER);
        };
        let header = usize::from(a) | usize::from(b) << 8 | usize::from(c) << 16;
        let (is_last, kind, size) = (header & 1 == 1, header >> 1 & 3, header >> 3);
        if size > ZSTD_BLOCK {
            return Err(GaveUp::Malformed);
        }
        let content = match kind {
            // One byte, so many times.
            1 => 1,
            _ => size,
        };
        let checksum = match is_last && self.has_checksum {
            true => ZSTD_CHECKSUM,
            false => 0,
        };
        Ok(ZSTD_BLOCK_HEADER + content + checksum)
    }

    fn header(&mut self) -> Result<(), GaveUp> {
        if number(&self.input) & !0xf == ZSTD_SKIP {
            self.at = match number(&self.input[4..]) {
                0 => ZstdAt::Header,
                left => ZstdAt::Skip(left),
            };
            return Ok(());
        }
        let descriptor = self.input[4];
        self.has_checksum = descriptor & 4 != 0;
        self.window = match descriptor & 0x20 {
            // RFC 8878 section 3.1.1.1.2.
            0 => {
                let window = self.input[5];
                let base = 1 << (10 + u32::from(window >> 3));
                base + base / 8 * u64::from(window & 7)
            }
            // In a single segment, the window is the content.
            _ => ZSTD_MAX_WINDOW,
        };
        // From its second frame on, the decoder allocates the whole window at once.
        if self.output > 0 {
            self.hold(self.window.min(ZSTD_MAX_WINDOW))?;
        }
        self.output = 0;
        self.at = ZstdAt::Block;
        self.decoder
            .reset(&self.input[..])
            .map_err(|_| GaveUp::Malformed)
    }

    fn block(&mut self, to: &mut impl Write) -> Result<(), GaveUp> {
        self.output += ZSTD_BLOCK as u64;
        self.hold(self.output.min(self.window + ZSTD_BLOCK as u64))?;
        let one = BlockDecodingStrategy::UptoBlocks(1);
        let is_over = self
            .decoder
            .decode_blocks(&self.input[..], one)
            .map_err(|_| GaveUp::Malformed)?;
        if is_over {
            self.at = ZstdAt::Header;
        }
        self.hand_on(to)
    }

    /// Holds memory for `buffer` bytes of output; its buffer doubles.
    fn hold(&mut self, buffer: u64) -> Result<(), GaveUp> {
        let buffer = usize::try_from(buffer.next_power_of_two()).unwrap_or(usize::MAX);
        self.held.grow_to(ZSTD_MEMORY.saturating_add(buffer))
    }

    /// Hands on what the decoder does not hold back for later copies.
    fn hand_on(&mut self, to: &mut impl Write) -> Result<(), GaveUp> {
        self.decoder
            .collect_to_writer(to)
            .map(drop)
            .map_err(|error| match error.kind() {
                io::ErrorKind::FileTooLarge => GaveUp::TooLong,
                _ => GaveUp::Malformed,
            })
    }

    fn finish(&mut self, to: &mut impl Write) -> bool {
        if self.at == ZstdAt::Header {
            return self.input.is_empty();
        }
        if self.at == ZstdAt::Block {
            // The decoder holds a window back until the frame ends: so it is given an end.
            let end = self
                .decoder
                .decode_blocks(&ZSTD_END[..], BlockDecodingStrategy::All);
            if end.is_ok() {
                // Nothing is lost by an error: the frame is broken as it is.
                self.hand_on(to).ok();
            }
        }
        false
    }
}

/// How long the header of a frame is, as far as that can be told (RFC 8878 section 3.1.1.1).
fn header_length(start: &[u8]) -> Result<usize, GaveUp> {
    if start.len() < 4 {
        return Ok(4);
    }
    match number(start) {
        magic if magic & !0xf == ZSTD_SKIP => return Ok(8),
        ZSTD_MAGIC => {}
        _ => return Err(GaveUp::Malformed),
    }
    let Some(descriptor) = start.get(4) else {
        return Ok(5);
    };
    let is_single = descriptor & 0x20 != 0;
    let window = usize::from(!is_single);
    let dictionary = [0, 1, 2, 4][usize::from(descriptor & 3)];
    let content = match descriptor >> 6 {
        0 => usize::from(is_single),
        size => 1 << size,
    };
    Ok(5 + window + dictionary + content)
}

/// The little-endian number at the start of `bytes`, which has four.
fn number(bytes: &[u8]) -> u32 {
    bytes[..4]
        .iter()
        .rev()
        .fold(0, |sum, byte| sum << 8 | u32::from(*byte))
}
