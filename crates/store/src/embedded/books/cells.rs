//! The sums in memory.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use onlyonce_core::{Account, Count, Posting, Sums, Timestamp};

use crate::{
    books::{Cell, Grain, Of, SumsQuery, cells_of},
    codec::{DecodeError, put_block, put_varint, take_text, take_varint},
};

const WHAT: &str = "sums";

/// All sums that are kept. A cell takes about 200 bytes.
#[derive(Default, PartialEq)]
pub struct Cells {
    periods: BTreeMap<(Grain, Timestamp), Period>,
    /// Each account once, however many cells it has.
    accounts: HashSet<Arc<Account>>,
}

#[derive(Default, PartialEq)]
struct Period {
    all: Sums,
    accounts: BTreeMap<Arc<Account>, Sums>,
}

impl Cells {
    pub fn post(&mut self, posting: &Posting) {
        for (grain, period, account) in cells_of(posting) {
            let period = self.periods.entry((grain, period)).or_default();
            let Some(account) = account else {
                period.all.merge(&posting.sums);
                continue;
            };
            match period.accounts.get_mut(account) {
                Some(sums) => sums.merge(&posting.sums),
                None => {
                    let account = intern(&mut self.accounts, account);
                    period.accounts.insert(account, posting.sums);
                }
            }
        }
    }

    pub fn tell(&self, query: &SumsQuery) -> Vec<Cell> {
        if query.since >= query.until {
            return Vec::new();
        }
        let (first, end) = ((query.grain, query.since), (query.grain, query.until));
        let mut told = Vec::new();
        for (&(_, period), cells) in self.periods.range(first..end) {
            let cell = |account: Account, sums: &Sums| Cell {
                period,
                account,
                sums: *sums,
            };
            let tenant = match &query.of {
                Of::All => {
                    told.push(cell(Account::default(), &cells.all));
                    continue;
                }
                Of::Accounts => None,
                Of::Tenant(tenant) => Some(tenant),
            };
            told.extend(
                cells
                    .accounts
                    .iter()
                    .filter(|(account, _)| tenant.is_none_or(|tenant| account.tenant == *tenant))
                    .map(|(account, sums)| cell((**account).clone(), sums)),
            );
        }
        told
    }

    /// Drops the periods that ended before `before`.
    pub fn trim(&mut self, before: Timestamp) {
        self.periods
            .retain(|(grain, period), _| period.after(grain.span()) > before);
        self.accounts
            .retain(|account| Arc::strong_count(account) > 1);
    }

    pub fn encode(&self, out: &mut BytesMut) {
        let mut numbers = HashMap::with_capacity(self.accounts.len());
        put_varint(out, self.accounts.len() as u64);
        for account in &self.accounts {
            put_account(out, account);
            numbers.insert(&**account, numbers.len() as u64);
        }
        put_varint(out, self.periods.len() as u64);
        for ((grain, at), period) in &self.periods {
            out.put_u8(u8::from(*grain == Grain::Day));
            put_varint(out, at.as_millis());
            put_sums(out, &period.all);
            put_varint(out, period.accounts.len() as u64);
            for (account, sums) in &period.accounts {
                put_varint(out, numbers.get(&**account).copied().unwrap_or(u64::MAX));
                put_sums(out, sums);
            }
        }
    }

    pub fn decode(bytes: &mut Bytes) -> Result<Self, DecodeError> {
        let malformed = DecodeError::Malformed(WHAT);
        let mut cells = Self::default();
        let mut accounts = Vec::new();
        for _ in 0..take_varint(bytes, WHAT)? {
            let account = Arc::new(take_account(bytes)?);
            cells.accounts.insert(account.clone());
            accounts.push(account);
        }
        for _ in 0..take_varint(bytes, WHAT)? {
            let grain = match bytes.try_get_u8() {
                Ok(0) => Grain::Hour,
                Ok(1) => Grain::Day,
                _ => return Err(malformed),
            };
            let at = Timestamp::from_millis(take_varint(bytes, WHAT)?);
            let mut period = Period {
                all: take_sums(bytes)?,
                ..Period::default()
            };
            for _ in 0..take_varint(bytes, WHAT)? {
                let number = usize::try_from(take_varint(bytes, WHAT)?).unwrap_or(usize::MAX);
                let account = accounts.get(number).ok_or(malformed)?.clone();
                period.accounts.insert(account, take_sums(bytes)?);
            }
            cells.periods.insert((grain, at), period);
        }
        Ok(cells)
    }
}

fn intern(accounts: &mut HashSet<Arc<Account>>, account: &Account) -> Arc<Account> {
    if let Some(held) = accounts.get(account) {
        return held.clone();
    }
    let held = Arc::new(account.clone());
    accounts.insert(held.clone());
    held
}

pub fn put_posting(out: &mut BytesMut, posting: &Posting) {
    put_varint(out, posting.at.as_millis());
    put_account(out, &posting.account);
    put_sums(out, &posting.sums);
}

pub fn take_posting(bytes: &mut Bytes) -> Result<Posting, DecodeError> {
    Ok(Posting {
        at: Timestamp::from_millis(take_varint(bytes, WHAT)?),
        account: take_account(bytes)?,
        sums: take_sums(bytes)?,
    })
}

fn put_account(out: &mut BytesMut, account: &Account) {
    for text in [
        &account.tenant,
        &account.route,
        &account.provider,
        &account.model,
    ] {
        put_block(out, text.as_bytes());
    }
}

fn take_account(bytes: &mut Bytes) -> Result<Account, DecodeError> {
    Ok(Account {
        tenant: take_text(bytes, WHAT)?,
        route: take_text(bytes, WHAT)?,
        provider: take_text(bytes, WHAT)?,
        model: take_text(bytes, WHAT)?,
    })
}

/// Those that are not 0, by number; the sign goes to the lowest bit.
fn put_sums(out: &mut BytesMut, sums: &Sums) {
    let some = || sums.iter().filter(|(_, sum)| *sum != 0);
    out.put_u8(some().count() as u8);
    for (count, sum) in some() {
        out.put_u8(count.number());
        put_varint(out, ((sum << 1) ^ (sum >> 63)) as u64);
    }
}

fn take_sums(bytes: &mut Bytes) -> Result<Sums, DecodeError> {
    let malformed = DecodeError::Malformed(WHAT);
    let mut sums = Sums::default();
    for _ in 0..bytes.try_get_u8().map_err(|_| malformed)? {
        let number = bytes.try_get_u8().map_err(|_| malformed)?;
        let count = Count::from_number(number).ok_or(malformed)?;
        let folded = take_varint(bytes, WHAT)?;
        sums.add(count, (folded >> 1) as i64 ^ -((folded & 1) as i64));
    }
    Ok(sums)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn posting(millis: u64, tenant: &str, cost: i64) -> Posting {
        Posting {
            at: Timestamp::from_millis(millis),
            account: Account {
                tenant: tenant.into(),
                ..Account::default()
            },
            sums: [(Count::Operations, 1), (Count::Cost, cost)]
                .into_iter()
                .collect(),
        }
    }

    #[test]
    fn what_was_encoded_is_told_as_before() {
        let mut cells = Cells::default();
        for number in 0..50 {
            let tenant = ["a", "b", "c"][number as usize % 3];
            cells.post(&posting(number * 1_000_000, tenant, 7 - number as i64));
        }
        cells.post(&posting(0, "a", i64::MIN));
        cells.post(&posting(90_000_000_000, "a", i64::MAX));
        let mut bytes = BytesMut::new();
        cells.encode(&mut bytes);
        let again = Cells::decode(&mut bytes.freeze()).expect("just encoded");
        for grain in Grain::ALL {
            for of in [Of::All, Of::Accounts, Of::Tenant("b".into())] {
                let query = SumsQuery {
                    grain,
                    since: Timestamp::default(),
                    until: Timestamp::from_millis(u64::MAX),
                    of,
                };
                let told = cells.tell(&query);
                assert!(!told.is_empty());
                assert_eq!(again.tell(&query), told);
            }
        }
    }

    #[test]
    fn cut_off_sums_are_not_taken() {
        let mut cells = Cells::default();
        cells.post(&posting(1, "a", 5));
        let mut bytes = BytesMut::new();
        cells.encode(&mut bytes);
        let bytes = bytes.freeze();
        for at in 0..bytes.len() {
            assert!(Cells::decode(&mut bytes.slice(..at)).is_err(), "{at}");
        }
    }
}
