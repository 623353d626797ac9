//! `onlyonce store copy`: moves all records to a new store.
//!
//! A key that was used must not look new to any gateway, at any moment. Only a claim lets anything run,
//! so of the two stores at most one takes claims:
//!
//! 1. The target is made, with the source's secret, under which addresses and fingerprints are hashed. It
//!    must be new: a gateway that had it open before would go on with another secret. From its first
//!    moment it is marked as one that is being filled, and no gateway opens it.
//! 2. Where gateways share the source, what has settled is copied while they serve.
//! 3. The source is marked as moved, and takes no claim from then on, from whichever gateway. All other
//!    writes are taken, so what runs settles there and no answer that was paid for is lost; a dead
//!    owner's claim becomes unknown when its lease has passed. Released keys are free, here and there.
//! 4. What is not in the target yet, or differs, is copied, and what is in it alone is removed.
//! 5. Every record of both is compared, the bodies too.
//! 6. The mark is taken off the target, and gateways may serve from it.
//!
//! Whatever breaks off is gone on with when the command is run again: the marks say how far it came, and
//! a record that was copied in part is removed and copied anew. Two that run at once do no harm:
//! a removal is fenced, and looks at the mark after it has looked at the record.

mod progress;
mod record;
#[cfg(test)]
mod tests;

use futures_util::{StreamExt, TryStreamExt, stream};
use onlyonce_core::Address;
use onlyonce_store::{Mark, Store, StoreError, Walked};
use tokio::time::Instant;

use self::progress::{Progress, show_bytes};
use self::record::{Found, Shift};
use crate::any_store::AnyStore;
use crate::config::{self, Encryption, Limits, StoreUrl};
use crate::failure::Failure;
use crate::open;

/// Records that are copied at once.
const AT_ONCE: usize = 64;
/// Places that a look at a store gives.
const PAGE: usize = 1_000;

/// Why a stage did not come to its end, in one line without what to do.
type Trouble = String;

/// The store that records are in, and the one that they are to be in.
pub(crate) struct Sides {
    from: Side,
    to: Side,
}

struct Side {
    settings: config::Store,
    place: String,
}

impl Side {
    fn new(url: StoreUrl, encryption: Option<Encryption>) -> Self {
        Self {
            place: url.place(),
            settings: config::Store {
                // What is read here is read once.
                cache_bytes: 0,
                // What was taken once is not refused for a limit.
                max_bytes: 0,
                max_records: u64::MAX,
                encryption,
                ..config::Store::at(url)
            },
        }
    }

    async fn open(&self) -> Result<AnyStore, Failure> {
        let limits = Limits {
            tenant_records: u64::MAX,
            ..Limits::default()
        };
        open::whatever_its_mark(&self.settings, &limits).await
    }
}

/// How far a copy had come.
struct Opened {
    from: AnyStore,
    to: AnyStore,
    /// What the source is marked as.
    source: Option<Mark>,
    /// What the target is: filled, where nothing.
    target: Option<Mark>,
}

impl Sides {
    /// The stores at two URLs, both with these keys for what is sealed.
    pub(crate) fn new(
        from: StoreUrl,
        to: StoreUrl,
        encryption: Option<Encryption>,
    ) -> Result<Self, Failure> {
        if [&from, &to].contains(&&StoreUrl::Memory) {
            return Err(Failure::usage(
                "a store in memory belongs to one process and cannot be copied",
                "name a store that outlives its gateway",
            ));
        }
        let (from, to) = (
            Side::new(from, encryption.clone()),
            Side::new(to, encryption),
        );
        if from.place == to.place {
            return Err(Failure::usage(
                format!("{} is named twice", from.place),
                "name the store that the records are in, then the new one",
            ));
        }
        Ok(Self { from, to })
    }

    /// Moves all records.
    pub(crate) async fn copy(self) -> Result<(), Failure> {
        let started = Instant::now();
        let Opened {
            from,
            to,
            source,
            target,
        } = self.open().await?;
        let Some(target) = target else {
            if source != Some(self.moved()) {
                return Err(self.in_service());
            }
            println!(
                "onlyonce: all was moved from {} to {} before; serve from the latter",
                self.from.place, self.to.place
            );
            return Ok(());
        };
        let (filling, shift) = self.measured(&from, &to, target).await?;
        let copy = Copy {
            from: &from,
            to: &to,
            shift,
            filling,
            progress: Progress::default(),
        };
        if source.is_none() && self.from.settings.url.is_shared() {
            let bulk = copy.pass(false);
            let bulk = copy.progress.told("copying while gateways serve", bulk);
            bulk.await.map_err(|why| self.open_still(why))?;
        }
        let closed = from.set_mark(source.clone(), Some(self.moved())).await;
        match closed {
            Ok(true) => {}
            Ok(false) => return Err(self.half_way("another copy of it runs".to_owned())),
            Err(error) => return Err(self.half_way(format!("{}: {error}", self.from.place))),
        }
        let counts = self.finish(&copy).await.map_err(|why| self.half_way(why))?;
        close(&from).await;
        close(&to).await;
        println!(
            "onlyonce: moved {} records and {} of bodies from {} to {} in {} s: {} completed, {} unknown, {} \
             unreadable (unknown from now on); each was compared; serve from the latter",
            counts.all(),
            show_bytes(counts.bytes),
            self.from.place,
            self.to.place,
            started.elapsed().as_secs(),
            counts.completed,
            counts.unknown,
            counts.unreadable,
        );
        Ok(())
    }

    /// All that comes after the source takes no claim any more.
    async fn finish(&self, copy: &Copy<'_>) -> Result<Counts, Trouble> {
        let told = &copy.progress;
        told.told("copying the rest", copy.pass(true)).await?;
        told.told("removing what is over", copy.prune()).await?;
        let counts = told.told("comparing", copy.compare()).await?;
        let filling = Some(copy.filling.clone());
        match copy.to.set_mark(filling, None).await {
            Ok(true) => Ok(counts),
            Ok(false) => Err("another copy into it, or its end, came between".to_owned()),
            Err(error) => Err(format!("{}: {error}", self.to.place)),
        }
    }

    /// Gives a copy up, as long as nothing can have been served from the target.
    pub(crate) async fn cancel(self) -> Result<(), Failure> {
        let Opened {
            from,
            to,
            source,
            target,
        } = self.open().await?;
        // The target first: from then on nothing opens it any more, whatever else runs.
        let over = Some(Mark::Moved {
            to: self.from.place.as_str().into(),
        });
        let is_new = match target {
            None => false,
            given_up if given_up == over => true,
            filling => to
                .set_mark(filling, over)
                .await
                .map_err(|error| open::failure(&error))?,
        };
        if !is_new {
            return Err(Failure::other(
                format!("the copy into {} came to its end", self.to.place),
                "serve from that one: keys that ran there would run again on the other",
            ));
        }
        let opened = from.set_mark(source, None).await;
        if !opened.map_err(|error| open::failure(&error))? {
            return Err(self.half_way("another copy of it runs".to_owned()));
        }
        close(&from).await;
        close(&to).await;
        println!(
            "onlyonce: gave up the copy; serve from {} again, and drop {}",
            self.from.place, self.to.place
        );
        Ok(())
    }

    /// Opens both, and makes the target where it is not there.
    async fn open(&self) -> Result<Opened, Failure> {
        if let StoreUrl::Embedded(folder) = &self.from.settings.url
            && !folder.join("meta").exists()
        {
            return Err(Failure::usage(
                format!("there is no store in {}", folder.display()),
                "name the store that the records are in; nothing was changed",
            ));
        }
        let from = self.from.open().await?;
        let source = mark_of(&from).await?;
        match &source {
            None if from.status().records == 0 => {
                return Err(Failure::other(
                    format!("{} holds no record", self.from.place),
                    "if that is the store that you mean, there is nothing to move: serve from the new one; \
                     nothing was changed",
                ));
            }
            Some(Mark::Filling { .. }) => {
                return Err(Failure::other(
                    format!("{} is a copy itself, and not finished", self.from.place),
                    "finish that one first",
                ));
            }
            Some(moved) if *moved != self.moved() => {
                return Err(Failure::other(
                    format!("the records of {} are elsewhere: {moved}", self.from.place),
                    "copy from there, or name the target as it is written here",
                ));
            }
            _ => {}
        }
        let filling = Mark::Filling {
            from: self.from.place.as_str().into(),
            shift_millis: None,
        };
        open::make(&self.to.settings, from.secret(), &filling).await?;
        let to = self.to.open().await?;
        if from.secret() != to.secret() {
            return Err(Failure::other(
                format!(
                    "there is another store in {}, with {} records, and another secret",
                    self.to.place,
                    to.status().records
                ),
                "name a new folder, a new schema (?schema=NAME) or a new prefix (?prefix=NAME), or drop that \
                 store if nobody needs it; nothing was changed",
            ));
        }
        let target = mark_of(&to).await?;
        Ok(Opened {
            from,
            to,
            source,
            target,
        })
    }

    /// The target's mark with the difference of the clocks in it, which is measured once for all records.
    async fn measured(
        &self,
        from: &AnyStore,
        to: &AnyStore,
        mark: Mark,
    ) -> Result<(Mark, Shift), Failure> {
        let Mark::Filling {
            from: place,
            shift_millis,
        } = mark.clone()
        else {
            return Err(Failure::other(
                format!("{} was given up: {mark}", self.to.place),
                "drop it, or name another one",
            ));
        };
        if let Some(millis) = shift_millis {
            return Ok((mark, Shift::of_millis(millis)));
        }
        // In this order: what passes in between makes windows longer and never shorter (I11).
        let shift = Shift::between(from.now(), to.now());
        let measured = Mark::Filling {
            from: place,
            shift_millis: Some(shift.millis()),
        };
        let set = to.set_mark(Some(mark), Some(measured.clone())).await;
        match set {
            Ok(true) => Ok((measured, shift)),
            Ok(false) => Err(self.open_still("another copy into it began".to_owned())),
            Err(error) => Err(self.open_still(format!("{}: {error}", self.to.place))),
        }
    }

    fn moved(&self) -> Mark {
        Mark::Moved {
            to: self.to.place.as_str().into(),
        }
    }

    fn in_service(&self) -> Failure {
        Failure::other(
            format!(
                "{} has the secret of {}, and is served from",
                self.to.place, self.from.place
            ),
            "name a new store; nothing was changed",
        )
    }

    fn open_still(&self, why: Trouble) -> Failure {
        Failure::other(
            format!("the copy broke off: {why}"),
            format!(
                "{} is served from as before; put that right, and run the same command again",
                self.from.place
            ),
        )
    }

    fn half_way(&self, why: Trouble) -> Failure {
        Failure::other(
            format!("the copy broke off: {why}"),
            format!(
                "nothing runs twice, and no new key runs until it is done: put that right and run the same \
                 command again, or add --cancel to serve from {} as before",
                self.from.place
            ),
        )
    }
}

async fn mark_of(store: &AnyStore) -> Result<Option<Mark>, Failure> {
    store.mark().await.map_err(|error| open::failure(&error))
}

/// All that was acknowledged is durable already.
async fn close(store: &AnyStore) {
    if let Err(error) = store.close().await {
        tracing::debug!(%error, "a store did not close");
    }
}

/// What was copied.
#[derive(Clone, Copy, Default)]
struct Counts {
    completed: u64,
    unknown: u64,
    unreadable: u64,
    /// Of bodies.
    bytes: u64,
}

impl Counts {
    fn all(&self) -> u64 {
        self.completed + self.unknown + self.unreadable
    }
}

/// A copy under way.
struct Copy<'a> {
    from: &'a AnyStore,
    to: &'a AnyStore,
    shift: Shift,
    /// What the target is marked as, as long as this is its only writer.
    filling: Mark,
    progress: Progress,
}

impl Copy<'_> {
    /// Copies what is not in the target. What runs is waited for, or left out.
    async fn pass(&self, waits: bool) -> Result<(), Trouble> {
        everywhere(self.from, |walked| self.copy_one(walked.address, waits)).await
    }

    /// Removes from the target what counts in it alone: what was released since it was copied, what
    /// an operator removed, and what is over.
    async fn prune(&self) -> Result<(), Trouble> {
        everywhere(self.to, |walked| async move {
            self.progress.looked(0);
            match self.found(walked.address).await? {
                Found::Nothing => self.remove(walked.address).await,
                Found::Running(_) | Found::Settled(_) => Ok(()),
            }
        })
        .await
    }

    /// Removes what the target holds at `address`.
    async fn remove(&self, address: Address) -> Result<(), Trouble> {
        let held = self.to.load(address).await.map_err(in_target)?;
        let Some(held) = held else { return Ok(()) };
        // After the look at the record: what a gateway has written there since has another fence.
        if self.to.mark().await.map_err(in_target)?.as_ref() != Some(&self.filling) {
            return Err("the copy was ended by another command".to_owned());
        }
        let removed = self.to.remove(address, held.record.fence()).await;
        removed.map(drop).map_err(in_target)
    }
}

/// Does `work` for all that `store` holds.
async fn everywhere<W: Future<Output = Result<(), Trouble>>>(
    store: &AnyStore,
    work: impl Fn(Walked) -> W,
) -> Result<(), Trouble> {
    let mut after = None;
    loop {
        let page = store.walk(after, PAGE).await;
        let page = page.map_err(|error| format!("not all places were found: {error}"))?;
        let Some(last) = page.last().copied() else {
            return Ok(());
        };
        after = Some(last);
        stream::iter(page)
            .map(&work)
            .buffer_unordered(AT_ONCE)
            .try_for_each(async |()| Ok(()))
            .await?;
    }
}

fn in_source(error: StoreError) -> Trouble {
    format!("the store to copy from: {error}")
}

fn in_target(error: StoreError) -> Trouble {
    format!("the store to copy into: {error}")
}
