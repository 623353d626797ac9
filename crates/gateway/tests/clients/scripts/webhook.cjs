// Verifies an event with the official library of Standard Webhooks, once with each of the job's secrets: as it
// came, and changed. Prints what each made of it; null is for what the library refuses.

const { Webhook, WebhookVerificationError } = require("standardwebhooks");

const job = JSON.parse(process.argv[2]);

function verified(secret, body) {
  try {
    return new Webhook(secret).verify(body, job.headers);
  } catch (error) {
    if (error instanceof WebhookVerificationError) return null;
    throw error;
  }
}

console.log(
  JSON.stringify({
    came: job.secrets.map((secret) => verified(secret, job.body)),
    changed: job.secrets.map((secret) => verified(secret, job.body + " ")),
  }),
);
