//! Files that others pick up: one for each hour, or for each 100,000 entries.
//!
//! A file is written beside its place, synced and moved there, and only then noted as delivered. It is
//! named after the hour and the first entry in it, and holds all that came after that one in the order
//! of the books up to the next hour's: one that is written again takes the place of itself.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use onlyonce_core::{Entry, OwnerId, Timestamp, Unit};
use onlyonce_store::{
    Store,
    books::{Advance, Grain, Position},
};
use tokio::fs;
use tokio::io::AsyncWriteExt as _;
#[cfg(feature = "parquet")]
use tokio::task::spawn_blocking;
use tokio::time::sleep;

#[cfg(feature = "parquet")]
use super::table::Table;
use crate::event;
use crate::outbox::{Settings, Stats, hold};

/// Entries of one file.
const MOST: u64 = 100_000;
/// Entries that are read at once.
const PAGE: usize = 1_000;
/// How often the books are looked at; the sink is held again each time.
const LOOK: Duration = Duration::from_secs(5);
/// After the end of an hour, how long its last entries have to come into the books.
const GRACE: Duration = Duration::from_secs(60);

/// How entries are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Comma-separated values (RFC 4180), with a line of names.
    Csv,
    /// One JSON object a line.
    Jsonl,
    /// Apache Parquet, with the columns of the CSV.
    #[cfg(feature = "parquet")]
    Parquet,
}

impl Format {
    /// What the names of its files end with.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Csv => "csv",
            Self::Jsonl => "jsonl",
            #[cfg(feature = "parquet")]
            Self::Parquet => "parquet",
        }
    }
}

/// What is written of a file so far.
enum Body {
    /// A line for each entry.
    Lines(fs::File, fn(&Entry, &mut String)),
    #[cfg(feature = "parquet")]
    Table(Arc<parking_lot::Mutex<Table<std::fs::File>>>),
}

impl Body {
    async fn create(path: &Path, format: Format) -> io::Result<Self> {
        let mut file = fs::File::create(path).await?;
        match format {
            Format::Csv => {
                file.write_all(csv_names().as_bytes()).await?;
                Ok(Self::Lines(file, csv_row))
            }
            Format::Jsonl => Ok(Self::Lines(file, json_row)),
            #[cfg(feature = "parquet")]
            Format::Parquet => {
                let table = Table::new(file.into_std().await)?;
                Ok(Self::Table(Arc::new(parking_lot::Mutex::new(table))))
            }
        }
    }

    async fn push(&mut self, entry: &Entry) -> io::Result<()> {
        match self {
            Self::Lines(file, row) => {
                let mut text = String::new();
                row(entry, &mut text);
                file.write_all(text.as_bytes()).await
            }
            #[cfg(feature = "parquet")]
            Self::Table(table) => {
                if !table.lock().push(entry.clone()) {
                    return Ok(());
                }
                let table = Arc::clone(table);
                spawn_blocking(move || Ok(table.lock().flush()?)).await?
            }
        }
    }

    /// Writes what is left, and waits until it is on disk.
    async fn finish(self) -> io::Result<()> {
        match self {
            Self::Lines(mut file, _) => {
                file.flush().await?;
                file.sync_all().await
            }
            #[cfg(feature = "parquet")]
            Self::Table(table) => spawn_blocking(move || table.lock().sync()).await?,
        }
    }
}

/// Where files go.
#[derive(Clone, Debug)]
pub struct Files {
    /// The folder; it is made where it is not there.
    pub folder: PathBuf,
    /// How entries are written.
    pub format: Format,
}

/// Writes files until it is dropped.
pub async fn keep<S: Store>(
    store: Arc<S>,
    owner: OwnerId,
    files: Files,
    settings: Settings,
    stats: Arc<Stats>,
) {
    let writer = Writer {
        store,
        owner,
        files,
        settings,
        stats,
    };
    loop {
        if let Err(why) = writer.serve().await {
            writer.stats.trouble(&why, writer.store.now());
            tracing::warn!(sink = &*writer.settings.name, "no file is written: {why}");
        }
        writer.stats.rest();
        sleep(LOOK).await;
    }
}

struct Writer<S> {
    store: Arc<S>,
    owner: OwnerId,
    files: Files,
    settings: Settings,
    stats: Arc<Stats>,
}

/// A file that is being written.
struct Part {
    body: Body,
    path: PathBuf,
    place: PathBuf,
    hour: Timestamp,
    oldest: Timestamp,
    last: Position,
    rows: u64,
}

impl<S: Store> Writer<S> {
    /// Writes for as long as the sink is held.
    async fn serve(&self) -> Result<(), String> {
        let Some(held) = self.hold().await? else {
            return Ok(());
        };
        self.stats.hold();
        self.clean().await.map_err(|error| error.to_string())?;
        let mut position = held;
        let mut part: Option<Part> = None;
        loop {
            let read = part.as_ref().map_or(position, |part| Some(part.last));
            let feed = self.store.feed(read, PAGE).await;
            let feed = feed.map_err(|error| error.to_string())?;
            let is_last = feed.len() < PAGE;
            for (at, entry) in feed {
                let hour = Grain::Hour.period(entry.at);
                if part.as_ref().is_some_and(|part| part.is_full(hour)) {
                    self.finish(&mut part, &mut position).await?;
                }
                let open = match &mut part {
                    Some(open) => open,
                    none => none.insert(self.begin(at, &entry).await.map_err(said)?),
                };
                open.push(at, &entry).await.map_err(said)?;
            }
            let now = self.store.now();
            if is_last && part.as_ref().is_some_and(|part| part.is_over(now)) {
                self.finish(&mut part, &mut position).await?;
            }
            let (oldest, rows) = part
                .as_ref()
                .map_or((None, 0), |part| (Some(part.oldest), part.rows));
            let rows = usize::try_from(rows).unwrap_or(usize::MAX);
            self.stats.under_way(oldest, rows);
            match self.hold().await? {
                Some(held) if held == position => {}
                _ => return Ok(()),
            }
            if is_last {
                sleep(LOOK).await;
            }
        }
    }

    /// How far the sink is, where it can be held.
    async fn hold(&self) -> Result<Option<Option<Position>>, String> {
        let held = hold(&*self.store, &self.settings, self.owner).await;
        let held = held.map_err(|error| error.to_string())?;
        Ok(held.map(|held| held.position))
    }

    /// Removes what a former holder did not finish, so that it cannot finish it any more.
    async fn clean(&self) -> io::Result<()> {
        fs::create_dir_all(&self.files.folder).await?;
        let mut folder = fs::read_dir(&self.files.folder).await?;
        let prefix = format!(".{}-", self.settings.name);
        while let Some(found) = folder.next_entry().await? {
            let name = found.file_name();
            let is_part = name
                .to_str()
                .is_some_and(|name| name.starts_with(&prefix) && name.ends_with(".part"));
            if is_part {
                fs::remove_file(found.path()).await?;
            }
        }
        Ok(())
    }

    async fn begin(&self, first: Position, entry: &Entry) -> io::Result<Part> {
        let hour = Grain::Hour.period(entry.at);
        let format = self.files.format;
        let name = file_name(&self.settings.name, hour, first, format);
        let path = self.files.folder.join(format!(".{name}.part"));
        Ok(Part {
            body: Body::create(&path, format).await?,
            path,
            place: self.files.folder.join(name),
            hour,
            oldest: entry.at,
            last: first,
            rows: 0,
        })
    }

    /// Puts the file into its place, and notes so.
    async fn finish(
        &self,
        part: &mut Option<Part>,
        position: &mut Option<Position>,
    ) -> Result<(), String> {
        let Some(done) = part.take() else {
            return Ok(());
        };
        done.body.finish().await.map_err(said)?;
        fs::rename(&done.path, &done.place).await.map_err(said)?;
        sync_folder(&self.files.folder).await.map_err(said)?;
        let step = Advance {
            sink: self.settings.name.clone(),
            owner: self.owner,
            from: *position,
            to: done.last,
            bury: Vec::new(),
        };
        let advanced = self.store.advance(step).await;
        match advanced.map_err(|error| error.to_string())? {
            true => {
                *position = Some(done.last);
                let rows = usize::try_from(done.rows).unwrap_or(usize::MAX);
                self.stats.delivered(rows);
                Ok(())
            }
            false => Err("another gateway has taken the sink over".to_owned()),
        }
    }
}

impl Part {
    async fn push(&mut self, at: Position, entry: &Entry) -> io::Result<()> {
        self.body.push(entry).await?;
        self.last = at;
        self.rows += 1;
        Ok(())
    }

    /// Whether an entry of `hour` goes into another file.
    fn is_full(&self, hour: Timestamp) -> bool {
        hour > self.hour || self.rows >= MOST
    }

    /// Whether nothing of its hour is to be expected any more.
    fn is_over(&self, now: Timestamp) -> bool {
        now >= self.hour.after(Grain::Hour.span()).after(GRACE) || self.rows >= MOST
    }
}

fn said(error: io::Error) -> String {
    error.to_string()
}

async fn sync_folder(folder: &Path) -> io::Result<()> {
    fs::File::open(folder).await?.sync_all().await
}

/// `acme-2026-11-25T08-0000...2a.csv`.
fn file_name(sink: &str, hour: Timestamp, first: Position, format: Format) -> String {
    let hour = event::rfc3339(hour);
    let (hour, _) = hour.split_once(':').unwrap_or((&hour, ""));
    format!("{sink}-{hour}-{:032x}.{}", first.0, format.as_str())
}

/// The columns before those of the units.
pub(super) const COLUMNS: [&str; 18] = [
    "id",
    "completed_at",
    "claimed_at",
    "tenant",
    "namespace",
    "route",
    "status",
    "provider",
    "model",
    "request_model",
    "operation",
    "response_id",
    "tier",
    "source",
    "cost_usd",
    "cost_basis",
    "cost_version",
    "trace_id",
];

fn csv_names() -> String {
    let units = Unit::ALL.iter().map(|unit| unit.as_str());
    let names: Vec<&str> = COLUMNS.into_iter().chain(units).collect();
    format!("{}\r\n", names.join(","))
}

/// What stands in [`COLUMNS`]; empty where nobody told.
pub(super) fn cells(entry: &Entry) -> [Cow<'_, str>; COLUMNS.len()] {
    let metered = &entry.metered;
    let cost = metered.cost.as_ref();
    let trace = entry.trace.as_ref().map(event::trace_id);
    [
        entry.id.to_string().into(),
        event::rfc3339(entry.at).into(),
        event::rfc3339(entry.claimed_at).into(),
        (&*entry.scope.tenant).into(),
        (&*entry.scope.namespace).into(),
        (&*entry.route).into(),
        entry.status.to_string().into(),
        (&*metered.provider).into(),
        (&*metered.model).into(),
        (&*metered.request_model).into(),
        (&*metered.operation).into(),
        (&*metered.response_id).into(),
        (&*metered.tier).into(),
        metered.source.as_str().into(),
        cost.map_or(Cow::Borrowed(""), |cost| cost.amount.to_string().into()),
        cost.map_or("", |cost| cost.basis.as_str()).into(),
        cost.map_or("", |cost| &*cost.version).into(),
        trace.unwrap_or_default().into(),
    ]
}

fn json_row(entry: &Entry, into: &mut String) {
    let _ = writeln!(into, "{}", event::json(entry));
}

fn csv_row(entry: &Entry, into: &mut String) {
    for (index, cell) in cells(entry).into_iter().enumerate() {
        if index > 0 {
            into.push(',');
        }
        csv_cell(&cell, into);
    }
    for unit in Unit::ALL {
        into.push(',');
        if let Some(count) = entry.metered.usage.get(*unit) {
            let _ = write!(into, "{count}");
        }
    }
    into.push_str("\r\n");
}

fn csv_cell(cell: &str, into: &mut String) {
    if !cell.contains([',', '"', '\r', '\n']) {
        return into.push_str(cell);
    }
    into.push('"');
    into.push_str(&cell.replace('"', "\"\""));
    into.push('"');
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tokio::task::JoinHandle;

    use super::*;
    use crate::outbox::LEASE;
    use crate::outbox::tests::{Bench, OWNER, until};

    #[test]
    fn a_file_is_named_after_its_hour_and_its_first_entry() {
        let name = file_name("acme", Timestamp::from_millis(0), Position(42), Format::Csv);
        assert_eq!(
            name,
            "acme-1970-01-01T00-0000000000000000000000000000002a.csv"
        );
    }

    #[test]
    fn what_has_commas_or_quotes_is_quoted() {
        let mut text = String::new();
        for cell in ["plain", "a,b", "a\"b", "a\nb"] {
            csv_cell(cell, &mut text);
            text.push(';');
        }
        assert_eq!(text, "plain;\"a,b\";\"a\"\"b\";\"a\nb\";");
    }

    /// What is in the folder, by name.
    fn found(folder: &Path) -> BTreeMap<String, Vec<u8>> {
        let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
        files
            .map(|file| {
                let name = file.file_name().to_string_lossy().into_owned();
                // It may have been moved just now.
                (name, std::fs::read(file.path()).unwrap_or_default())
            })
            .collect()
    }

    fn is_finished(folder: &Path) -> bool {
        found(folder).keys().any(|name| !name.starts_with('.'))
    }

    fn run(bench: &Bench, owner: OwnerId, folder: &Path, format: Format) -> JoinHandle<()> {
        let files = Files {
            folder: folder.to_owned(),
            format,
        };
        let (store, stats) = (Arc::clone(&bench.store), Arc::clone(&bench.stats));
        tokio::spawn(keep(store, owner, files, bench.settings.clone(), stats))
    }

    /// A bench with three entries of one hour.
    async fn bench() -> Bench {
        let bench = Bench::new();
        for id in 1..=3 {
            bench.complete(id).await;
        }
        bench
    }

    fn next_hour(bench: &Bench) {
        bench.clock.advance(Grain::Hour.span());
        bench.clock.advance(GRACE);
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_crash_left_of_a_file_is_no_file_and_goes() {
        let folder = tempfile::tempdir().expect("a folder");
        let bench = bench().await;
        let killed = run(&bench, OWNER, folder.path(), Format::Csv);
        until(async || bench.stats.snapshot().pending == 3).await;
        killed.abort();
        let left = found(folder.path());
        assert_eq!(left.len(), 1, "{left:?}");
        assert!(
            left.keys()
                .all(|name| name.starts_with('.') && name.ends_with(".part"))
        );

        // One that nobody begins again.
        let torn = folder.path().join(".sink-2023-11-14T21-00.csv.part");
        std::fs::write(torn, "id,comp").expect("written");

        bench.clock.advance(LEASE);
        next_hour(&bench);
        let next = OwnerId::new(2);
        let task = run(&bench, next, folder.path(), Format::Csv);
        until(async || is_finished(folder.path())).await;
        until(async || bench.position(next).await == Some(Position(2))).await;
        task.abort();
        let files = found(folder.path());
        assert_eq!(files.len(), 1, "{files:?}");
        for (name, bytes) in files {
            let text = String::from_utf8(bytes).expect("text");
            assert!(name.starts_with("sink-2023-11-14T22-"), "{name}");
            assert_eq!(text.lines().count(), 4, "{text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_that_was_not_noted_as_delivered_takes_its_own_place() {
        again_in_its_own_place(Format::Csv).await;
        again_in_its_own_place(Format::Jsonl).await;
        #[cfg(feature = "parquet")]
        {
            let bytes = again_in_its_own_place(Format::Parquet).await;
            assert!(bytes.starts_with(b"PAR1") && bytes.ends_with(b"PAR1"));
        }
    }

    async fn again_in_its_own_place(format: Format) -> Vec<u8> {
        let folder = tempfile::tempdir().expect("a folder");
        let mut runs = Vec::new();
        for _ in 0..2 {
            // The second one stands where the first was killed before it noted the file.
            let bench = bench().await;
            next_hour(&bench);
            let task = run(&bench, OWNER, folder.path(), format);
            until(async || bench.position(OWNER).await == Some(Position(2))).await;
            task.abort();
            let files = found(folder.path());
            for name in files.keys() {
                std::fs::write(folder.path().join(name), "something else").expect("written");
            }
            runs.push(files);
        }
        assert_eq!(runs[0].len(), 1, "{:?}", runs[0]);
        assert_eq!(runs[0], runs[1]);
        let bytes = runs[0].values().next();
        bytes.expect("a file").clone()
    }
}
