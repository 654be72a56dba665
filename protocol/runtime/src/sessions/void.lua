-- The jobs that were confirmed before a moment are gone. ARGV: 5 that moment. Returns how many turns are void by that.
-- A reservation stays: its job may be on its way into the new store, and its hold ends it otherwise.
-- No touch: what nobody uses keeps its time to live.
local moment = tonumber(ARGV[5])
local entries = redis.call('HGETALL', open)
local gone = 0
for i = 1, #entries, 2 do
  local _, state, at = parse(entries[i + 1])
  if state == 'c' and at < moment then
    gone = gone + redis.call('HDEL', open, entries[i])
  end
end
return gone
