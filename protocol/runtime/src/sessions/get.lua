-- The conversation and the greatest number given. Reading does not keep a session alive.
return {int(field('tail')), redis.call('ZRANGE', turns, 0, -1)}
