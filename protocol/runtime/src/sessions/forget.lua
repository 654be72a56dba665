-- Forgets turns. ARGV: 5 number up to which. Turns on their way up to it leave no trace. Returns how many there were.
local upto = tonumber(ARGV[5])
local gone = redis.call('ZRANGEBYSCORE', turns, '-inf', int(upto))
local bytes = field('bytes')
for _, turn in ipairs(gone) do
  bytes = bytes - #turn
end
redis.call('ZREMRANGEBYSCORE', turns, '-inf', int(upto))
set('bytes', bytes)
set('forgotten', math.max(upto, field('forgotten')))
set('tail', math.max(upto, field('tail')))
touch()
return #gone
