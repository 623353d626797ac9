// Charges with the official Stripe SDK for Node, as the JSON in the first argument asks. The lines that it
// prints are those of stripe_client.py. NODE_PATH says where the SDK is.

const Stripe = require("stripe");

const job = JSON.parse(process.argv[2]);
const { hostname, port } = new URL(job.base);
const client = new Stripe("sk_test_12345", {
  host: hostname,
  port,
  protocol: "http",
  maxNetworkRetries: job.max_retries ?? 2,
});
const say = (line) => process.stdout.write(JSON.stringify(line) + "\n");

async function call() {
  const charge = { amount: job.amount ?? 100, currency: "usd", source: "tok_visa" };
  const options = { idempotencyKey: job.key, headers: job.headers ?? {} };
  const made = await client.charges.create(charge, options);
  say({ text: String(made.id), mark: made.lastResponse.headers["onlyonce-status"] });
}

async function main() {
  for (let i = 0; i < (job.times ?? 1); i++) {
    try {
      await call();
    } catch (error) {
      say({ error: error.constructor.name, status: error.statusCode ?? null, message: error.message });
    }
  }
}

main();
