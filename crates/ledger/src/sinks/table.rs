//! Entries as a Parquet file: the columns of the CSV, each with its type.

use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;

use onlyonce_core::{Entry, Timestamp, Unit};
use parquet::data_type::{ByteArray, ByteArrayType, DataType, Int32Type, Int64Type};
use parquet::errors::{ParquetError, Result};
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;

use super::file::{COLUMNS, cells};

/// Rows that are held in memory, and written as one group.
const GROUP: usize = 10_000;

/// A file that is being written.
pub(super) struct Table<W: Write + Send> {
    file: SerializedFileWriter<W>,
    rows: Vec<Entry>,
}

impl<W: Write + Send> Table<W> {
    /// An empty one.
    pub(super) fn new(file: W) -> Result<Self> {
        let schema = Arc::new(parse_message_type(&schema())?);
        Ok(Self {
            file: SerializedFileWriter::new(file, schema, Arc::default())?,
            rows: Vec::new(),
        })
    }

    /// Takes a row, and says whether it is time to [flush](Self::flush).
    pub(super) fn push(&mut self, entry: Entry) -> bool {
        self.rows.push(entry);
        self.rows.len() >= GROUP
    }

    /// Writes the rows that it holds.
    pub(super) fn flush(&mut self) -> Result<()> {
        let rows = std::mem::take(&mut self.rows);
        if rows.is_empty() {
            return Ok(());
        }
        let texts: Vec<_> = rows.iter().map(cells).collect();
        let mut group = self.file.next_row_group()?;
        for (index, name) in COLUMNS.into_iter().enumerate() {
            match name {
                "completed_at" => {
                    let moments = rows.iter().map(|entry| Some(millis(entry.at)));
                    put::<Int64Type, W>(&mut group, moments)?;
                }
                "claimed_at" => {
                    let moments = rows.iter().map(|entry| Some(millis(entry.claimed_at)));
                    put::<Int64Type, W>(&mut group, moments)?;
                }
                "status" => {
                    let statuses = rows.iter().map(|entry| Some(entry.status.into()));
                    put::<Int32Type, W>(&mut group, statuses)?;
                }
                "cost_usd" => {
                    let costs = rows.iter().map(|entry| entry.metered.cost.as_ref());
                    let costs = costs.map(|cost| cost.map(|cost| cost.amount.nanos()));
                    put::<Int64Type, W>(&mut group, costs)?;
                }
                _ => {
                    let texts = texts.iter().map(|row| text(&row[index]));
                    put::<ByteArrayType, W>(&mut group, texts)?;
                }
            }
        }
        for unit in Unit::ALL {
            let counts = rows.iter().map(|entry| entry.metered.usage.get(*unit));
            let counts =
                counts.map(|count| count.map(|count| count.try_into().unwrap_or(i64::MAX)));
            put::<Int64Type, W>(&mut group, counts)?;
        }
        group.close()?;
        Ok(())
    }

    /// Writes what is left, and the end.
    pub(super) fn finish(&mut self) -> Result<&W> {
        self.flush()?;
        self.file.finish()?;
        Ok(self.file.inner())
    }
}

impl Table<File> {
    /// Writes what is left, and the end, and syncs it.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        self.finish()?.sync_all()
    }
}

/// The columns, as Parquet writes a schema. Each may be null.
fn schema() -> String {
    let column = |name: &str| match name {
        "completed_at" | "claimed_at" => format!("optional int64 {name} (TIMESTAMP(MILLIS,true));"),
        "status" => format!("optional int32 {name};"),
        "cost_usd" => format!("optional int64 {name} (DECIMAL(18,9));"),
        _ => format!("optional binary {name} (UTF8);"),
    };
    let columns: String = COLUMNS.into_iter().map(column).collect();
    let unit = |unit: &Unit| format!("optional int64 {};", unit.as_str());
    let units: String = Unit::ALL.iter().map(unit).collect();
    format!("message entry {{ {columns} {units} }}")
}

fn millis(moment: Timestamp) -> i64 {
    moment.as_millis().try_into().unwrap_or(i64::MAX)
}

/// What nobody told is null.
fn text(cell: &str) -> Option<ByteArray> {
    (!cell.is_empty()).then(|| cell.as_bytes().to_vec().into())
}

/// Writes the next column.
fn put<T: DataType, W: Write + Send>(
    group: &mut SerializedRowGroupWriter<'_, W>,
    cells: impl Iterator<Item = Option<T::T>>,
) -> Result<()> {
    let (mut values, mut levels) = (Vec::new(), Vec::new());
    for cell in cells {
        levels.push(i16::from(cell.is_some()));
        values.extend(cell);
    }
    let column = group.next_column()?;
    let mut column =
        column.ok_or_else(|| ParquetError::General("the schema has no such column".to_owned()))?;
    column
        .typed::<T>()
        .write_batch(&values, Some(&levels), None)?;
    column.close()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use onlyonce_core::Metered;
    use parquet::file::reader::{FileReader, SerializedFileReader};
    use parquet::record::Field;

    use super::*;
    use crate::sinks::tests::entry;

    /// Cells as the CSV has them, by what was read from the file.
    fn shown(name: &str, field: &Field) -> String {
        match field {
            Field::Null => String::new(),
            Field::TimestampMillis(millis) => crate::event::rfc3339(Timestamp::from_millis(
                (*millis).try_into().expect("a moment"),
            )),
            Field::Decimal(decimal) => {
                assert_eq!((name, decimal.scale()), ("cost_usd", 9));
                let bytes = decimal.data().try_into().expect("eight bytes");
                onlyonce_core::Usd::from_nanos(i64::from_be_bytes(bytes)).to_string()
            }
            Field::Str(text) => text.clone(),
            Field::Int(number) => number.to_string(),
            Field::Long(number) => number.to_string(),
            other => panic!("{name}: {other:?}"),
        }
    }

    #[test]
    fn what_is_read_back_is_what_the_csv_says() {
        let mut untold = entry("globex", 2);
        untold.metered = Metered::default();
        untold.trace = None;
        let entries = [entry("acme", 1), untold, entry("acme", 3)];
        let mut table = Table::new(Vec::new()).expect("a table");
        for (index, entry) in entries.iter().enumerate() {
            assert!(!table.push(entry.clone()));
            // Two groups.
            if index == 1 {
                table.flush().expect("written");
            }
        }
        let bytes = table.finish().expect("finished").clone();
        let file = SerializedFileReader::new(Bytes::from(bytes)).expect("a file");
        assert_eq!(file.metadata().num_row_groups(), 2);
        let rows: Vec<_> = file
            .get_row_iter(None)
            .expect("rows")
            .map(|row| row.expect("a row"))
            .collect();
        assert_eq!(rows.len(), entries.len());
        for (row, entry) in rows.iter().zip(&entries) {
            let found: Vec<(String, String)> = row
                .get_column_iter()
                .map(|(name, field)| (name.clone(), shown(name, field)))
                .collect();
            let names = COLUMNS.into_iter().map(str::to_owned);
            let told = names.zip(cells(entry).map(|cell| cell.into_owned()));
            let units = Unit::ALL.iter().map(|unit| {
                let count = entry.metered.usage.get(*unit);
                (
                    unit.as_str().to_owned(),
                    count.map(|count| count.to_string()).unwrap_or_default(),
                )
            });
            assert_eq!(found, told.chain(units).collect::<Vec<_>>());
        }
    }
}
