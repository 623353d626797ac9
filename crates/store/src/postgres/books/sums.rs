//! The sums.

use std::collections::{BTreeMap, HashMap};

use onlyonce_core::{Account, Count, Posting, Sums, Timestamp};
use tokio_postgres::{
    Row,
    types::{ToSql, Type},
};

use crate::{
    StoreError,
    books::{Cell, Grain, Of, SumsQuery, cells_of},
    corrupt,
    postgres::{
        Core,
        body::millis,
        calls::{Param, column},
        error::Failed,
        sql::LAZY,
        store::unreadable,
    },
};

/// Bytes of a name that are told apart: four of them fit into an entry of an index.
const LONGEST_NAME: usize = 600;

/// The number of a grain in its column.
pub const fn grain_number(grain: Grain) -> i16 {
    match grain {
        Grain::Hour => 1,
        Grain::Day => 2,
    }
}

/// The columns before the sums.
const PLACE: &str = "grain, together, period, tenant, route, provider, model";

const PLACE_TYPES: [Type; 7] = [
    Type::INT2_ARRAY,
    Type::BOOL_ARRAY,
    Type::INT8_ARRAY,
    Type::BYTEA_ARRAY,
    Type::BYTEA_ARRAY,
    Type::BYTEA_ARRAY,
    Type::BYTEA_ARRAY,
];

/// The names of the columns of the sums, in the order of their numbers.
fn counts() -> String {
    let names = Count::ALL.iter().map(|count| count.as_str());
    names.collect::<Vec<_>>().join(", ")
}

/// What is to be added, by hour and account.
#[derive(Default)]
pub struct Postings(HashMap<(Timestamp, Account), Sums>);

/// The same by cell: in the order of the table's key, in which all lock its rows.
pub struct Cells(BTreeMap<(i16, bool, Timestamp, Account), Sums>);

impl Postings {
    pub fn add(&mut self, posting: Posting) {
        let place = (Grain::Hour.period(posting.at), posting.account);
        self.0.entry(place).or_default().merge(&posting.sums);
    }

    pub fn cells(self) -> Cells {
        let mut cells = BTreeMap::<_, Sums>::new();
        for ((at, account), sums) in self.0 {
            let posting = Posting { at, account, sums };
            for (grain, period, account) in cells_of(&posting) {
                let together = account.is_none();
                let account = account.map(cut).unwrap_or_default();
                let cell = (grain_number(grain), together, period, account);
                cells.entry(cell).or_default().merge(&posting.sums);
            }
        }
        Cells(cells)
    }
}

impl Cells {
    /// The statement that adds them for each row of `source`, with parameters from the `first` on.
    pub fn statement(schema: &str, source: &str, first: usize) -> String {
        let counts = counts();
        let arrays: Vec<String> = types()
            .iter()
            .enumerate()
            .map(|(at, ty)| format!("${}::{}", first + at, ty.name().replacen('_', "", 1) + "[]"))
            .collect();
        let arrays = arrays.join(", ");
        // Sums stop at what fits.
        let added: Vec<String> = Count::ALL
            .iter()
            .map(|count| {
                let sum = format!("s.{count}::numeric + excluded.{count}");
                format!(
                    "{count} = greatest(least({sum}, {}), {})::int8",
                    i64::MAX,
                    i64::MIN
                )
            })
            .collect();
        let added = added.join(", ");
        format!(
            "INSERT INTO {schema}.sums AS s ({PLACE}, {counts})
            SELECT {PLACE}, {counts}
            FROM {source}, unnest({arrays}) AS w ({PLACE}, {counts})
            ORDER BY {PLACE}
            ON CONFLICT ({PLACE}) DO UPDATE SET {added}"
        )
    }

    /// The parameters of that.
    pub fn columns(&self) -> Vec<Box<dyn ToSql + Sync + Send + '_>> {
        let cells: Vec<_> = self.0.iter().collect();
        let name = |of: fn(&Account) -> &str| -> Box<dyn ToSql + Sync + Send + '_> {
            Box::new(column(&cells, |((.., account), _)| of(account).as_bytes()))
        };
        let mut columns: Vec<Box<dyn ToSql + Sync + Send + '_>> = vec![
            Box::new(column(&cells, |((grain, ..), _)| *grain)),
            Box::new(column(&cells, |((_, together, ..), _)| *together)),
            Box::new(column(&cells, |((_, _, period, _), _)| millis(*period))),
            name(|account| &account.tenant),
            name(|account| &account.route),
            name(|account| &account.provider),
            name(|account| &account.model),
        ];
        for count in Count::ALL {
            columns.push(Box::new(column(&cells, |(_, sums)| sums.get(*count))));
        }
        columns
    }
}

/// The types of the parameters of [`Cells::statement`].
pub fn types() -> Vec<Type> {
    let mut types = PLACE_TYPES.to_vec();
    types.resize(PLACE_TYPES.len() + Count::COUNT, Type::INT8_ARRAY);
    types
}

fn cut(account: &Account) -> Account {
    let Account {
        tenant,
        route,
        provider,
        model,
    } = account;
    Account {
        tenant: cut_name(tenant).into(),
        route: cut_name(route).into(),
        provider: cut_name(provider).into(),
        model: cut_name(model).into(),
    }
}

fn cut_name(name: &str) -> &str {
    let mut ends = (0..=name.len().min(LONGEST_NAME)).rev();
    let end = ends.find(|&end| name.is_char_boundary(end));
    &name[..end.unwrap_or(0)]
}

impl Core {
    pub async fn post(&self, postings: Vec<Posting>) -> Result<(), StoreError> {
        let mut summed = Postings::default();
        for posting in postings {
            summed.add(posting);
        }
        let text = format!(
            "WITH setting AS MATERIALIZED (SELECT {LAZY}) {}",
            Cells::statement(&self.target.schema, "setting", 1)
        );
        let cells = summed.cells();
        let columns = cells.columns();
        let params: Vec<Param> = columns.iter().map(|column| &**column as Param).collect();
        let asked = self.bookkeeping.ask(self, &text, &types(), &params).await;
        asked.map(drop).map_err(Failed::of_a_write)
    }

    pub async fn sums(&self, query: &SumsQuery) -> Result<Vec<Cell>, StoreError> {
        let text = format!(
            "SELECT period, tenant, route, provider, model, {} FROM {}.sums
            WHERE grain = $1 AND together = $2 AND period >= $3 AND period < $4
                AND ($5::bytea IS NULL OR tenant = $5)
            ORDER BY period, tenant, route, provider, model",
            counts(),
            self.target.schema
        );
        let types = [Type::INT2, Type::BOOL, Type::INT8, Type::INT8, Type::BYTEA];
        let tenant = match &query.of {
            Of::Tenant(tenant) => Some(cut_name(tenant).as_bytes()),
            Of::All | Of::Accounts => None,
        };
        let params: [Param; 5] = [
            &grain_number(query.grain),
            &(query.of == Of::All),
            &millis(query.since),
            &millis(query.until),
            &tenant,
        ];
        let asked = self.operators.ask(self, &text, &types, &params).await;
        let rows = asked.map_err(Failed::of_a_read)?;
        rows.iter().map(cell).collect()
    }
}

fn cell(row: &Row) -> Result<Cell, StoreError> {
    let period: i64 = row.try_get(0).map_err(unreadable)?;
    let name = |at| -> Result<Box<str>, StoreError> {
        let bytes: &[u8] = row.try_get(at).map_err(unreadable)?;
        Ok(std::str::from_utf8(bytes).map_err(corrupt)?.into())
    };
    let account = Account {
        tenant: name(1)?,
        route: name(2)?,
        provider: name(3)?,
        model: name(4)?,
    };
    let mut sums = Sums::default();
    for (at, count) in Count::ALL.iter().enumerate() {
        sums.add(*count, row.try_get(5 + at).map_err(unreadable)?);
    }
    Ok(Cell {
        period: Timestamp::from_millis(u64::try_from(period).map_err(corrupt)?),
        account,
        sums,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cut_between_characters() {
        let long = "ü".repeat(LONGEST_NAME);
        assert_eq!(cut_name(&long).len(), LONGEST_NAME);
        assert_eq!(cut_name(&format!("x{long}")).len(), LONGEST_NAME - 1);
        assert_eq!(cut_name("gpt-5"), "gpt-5");
    }
}
